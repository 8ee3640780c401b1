"""The words, numbers and symbols of a question, without the dress they wear."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

_DRESS = re.compile(
    r"\\(?:left|right|bigg?[lrm]?|displaystyle|textstyle|limits|nolimits|quad|qquad|"
    r"text(?:bf|it|rm|sf)?|math(?:rm|bf|it|sf|bb|cal|frak)|operatorname|boldsymbol)(?![a-z])\*?"
    r"|\\[,;:! ()\[\]]|~|\$|&nbsp;"
)
_SAME = {"leq": "\\le", "leqslant": "\\le", "geq": "\\ge", "geqslant": "\\ge", "neq": "\\ne"}
_VARIANT = re.compile(r"\\([dtc]frac|leq(?:slant)?|geq(?:slant)?|neq)(?![a-z])")
_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:,|\{,\}|\\,)\d{3})+(?![\d,])")
_GROUPING = re.compile(r"\D+")
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
# A number, a letter of a script that writes no spaces, a word, a factorial (not the end of a
# sentence), a sign (not a hyphen), or any symbol but punctuation.
_TOKEN = re.compile(
    rf"\d+(?:\.\d+)?|[{_UNSPACED}]|[^\W\d_{_UNSPACED}]+"
    r"|(?<![^\W\d_]{2})(?<=[\w)}])!"
    r"|(?<![^\W\d_]{2})-|-(?![^\W\d_]{2})"
    r"|[^\w\s.,;:?!'\"`“”‘’。，、；：？！{}\\-]|(?<!_)_(?!_)"
)
_NUMBER = re.compile(r"\d")
_ARITHMETIC = frozenset((*"+-*/^=%_×÷", "cdot", "times", "div"))


def exact_key(question: str) -> str:
    """What equal questions share: everything but case and the white space around them."""
    return question.strip().casefold()


def words_of(question: str) -> list[str]:
    """Words, numbers and symbols in order.

    Case, white space, punctuation between them, and LaTeX that changes the look alone are
    gone; signs, brackets, powers and indices are kept.
    """
    text = unicodedata.normalize("NFKC", question).casefold()
    if "," in text:
        text = _GROUPED.sub(lambda found: _GROUPING.sub("", found[0]), text)
    if "\\" in text:
        text = _VARIANT.sub(lambda found: _SAME.get(found[1], "\\frac"), text)
    return _TOKEN.findall(_DRESS.sub(" ", text))


def figures_of(words: Sequence[str]) -> Counter[str]:
    """How often each number, plus and minus occurs."""
    return Counter(word for word in words if _NUMBER.match(word) or word in "+-")


def goes_on(words: Sequence[str], part: Sequence[str]) -> bool:
    """Whether a part stands in longer text that goes on with its arithmetic: 2 + 3 in 2 + 3 * 4.

    A symbol that is repeated, as in ** or ---, is decoration.
    """
    for start in range(len(words) - len(part) + 1):
        end = start + len(part)
        if list(words[start:end]) == list(part):
            after, before = words[end : end + 2], words[max(0, start - 2) : start]
            return _calculates(after) or _calculates(before[::-1])
    return False


def _calculates(neighbours: Sequence[str]) -> bool:
    if len(neighbours) < 2 or neighbours[0] not in _ARITHMETIC:
        return False
    beyond = neighbours[1]
    return bool(_NUMBER.match(beyond)) or (len(beyond) == 1 and beyond not in _ARITHMETIC)
