r"""Where in a text its final answer stands. Pure, and linear in the length of the text."""

import re
from typing import NamedTuple

TAIL = 2000
"""Characters at the end of a text in which an answer that nothing marks is looked for."""

# The parts of LaTeX that decide where a box ends; an escaped brace is none.
_BRACES = re.compile(r"(?P<box>\\f?box(?:ed)?\s*\{)|\\.|[{}]", re.DOTALL)
_MARKED = re.compile(r"^.*(?:####|answer\s*:|answer\s+is\b:?)[ \t*]*(.*)$", re.IGNORECASE)
_HASHES = re.compile(r"^####[ \t]*(.+)$", re.MULTILINE)
_DELIMITED = re.compile(r"\$\$?([^$]+)\$\$?|\\\(((?:(?!\\\)).)+)\\\)|\\\[((?:(?!\\\]).)+)\\\]")
_MATHS = re.compile(r"(?<!\\)\$|\\\(|\\\[")
_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_COMMAND = re.compile(r"\\(?:begin|end)\{[a-z]+\*?\}|\\[A-Za-z]+")
# Words that belong in a formula, and those that join several answers.
_WORD = re.compile(
    r"\b(?!(?:or|and|sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|max|min|mod|gcd|lcm)\b)[A-Za-z]{3,}\b"
)
_LAYOUT = re.compile(r"\\left\b|\\right\b|\\displaystyle\b|\\[!,;:]")
_SPACE = re.compile(r"(?<!\d) | (?!\d)")  # between two digits it says something
_GROUPED = re.compile(r"(?<=\d)(?:\\[,;: ]|\{,\}|\\ )(?=\d{3}(?!\d))")


class FinalAnswer(NamedTuple):
    """The part of a text that is judged."""

    text: str
    """A formula, or the words in which the answer is to be found."""
    is_formula: bool
    """Whether all of it is the answer; else it is prose that holds one."""
    is_marked: bool = True
    """Whether it stands in a box, after a mark or alone; else it is the end of a longer text."""


def final_answer(text: str) -> FinalAnswer | None:
    r"""The content of the last whole `\boxed{}`; else the last line marked as the answer.

    A mark is `Answer:` (as DAPO asks for it), `answer is` or `####` (as GSM8K writes it); where
    nothing follows it, the next line is the answer.
    A text of one line is its own answer. Failing these, the last `TAIL` characters are
    prose that may hold one. None where nothing is left.
    """
    boxed = last_box(text)
    if boxed is not None:
        return _read(boxed, is_formula=True)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for place, line in reversed(list(enumerate(lines))):
        if found := _MARKED.match(line):
            marked = found.group(1) or "".join(lines[place + 1 : place + 2])
            if marked:
                return _read(marked)
    if len(lines) == 1 and len(lines[0]) <= TAIL:
        return _read(lines[0])
    tail = _GROUPED.sub("", text.strip()[-TAIL:])
    return FinalAnswer(tail, False, is_marked=False) if tail else None


def reference_answer(answer: str) -> str:
    r"""The formula of a reference: its last `\boxed{}`, what follows its last `####`, or all."""
    boxed = last_box(answer)
    hashes = _HASHES.findall(answer)
    part = boxed if boxed is not None else hashes[-1] if hashes else answer
    return _undelimited(part.strip())


def same_text(one: str, other: str) -> bool:
    """Whether two formulas are written alike, spacing and kinds of brackets and fractions aside."""
    return _plain(one) == _plain(other)


def last_box(text: str) -> str | None:
    r"""What the last `\boxed{}` or `\fbox{}` that is closed holds; the outer one of nested ones."""
    opened: list[int | None] = []
    content = None
    for part in _BRACES.finditer(text):
        if part.group("box"):
            opened.append(part.end())
        elif part.group() == "{":
            opened.append(None)
        elif part.group() == "}" and opened:
            start = opened.pop()
            if start is not None:
                content = text[start : part.start()].strip()
    return content


def _read(part: str, is_formula: bool = False) -> FinalAnswer | None:
    part = part.strip()
    whole = _undelimited(part if is_formula else part.rstrip(".* "))
    if not whole:
        return None
    return FinalAnswer(whole, is_formula or _is_formula(whole))


def _is_formula(line: str) -> bool:
    """Whether a line is an answer and nothing else; `42 apples` is prose, `north` is not."""
    if _MATHS.search(line):
        return False
    words = _WORD.search(_COMMAND.sub(" ", _TEXT.sub(" ", line)))
    return not words or not any(character.isdigit() for character in line)


def _undelimited(formula: str) -> str:
    """`$x$`, `\\(x\\)` and `\\[x\\]` as x, digits grouped by thin spaces as one number."""
    found = _DELIMITED.fullmatch(formula)
    inner = next(part for part in found.groups() if part is not None) if found else formula
    return _GROUPED.sub("", inner.strip())


def _plain(formula: str) -> str:
    unwrapped = _TEXT.sub(r"\1", formula).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    spaced = " ".join(_LAYOUT.sub("", unwrapped).replace("~", " ").split())
    return _SPACE.sub("", spaced).rstrip(".")
