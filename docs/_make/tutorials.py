"""Run the tutorials as a reader would, and write into them what was printed.

`make outputs` runs every tutorial, one after the other, in one new folder. In a page

- a `bash` block is typed into a shell, a `python` block is run as a script and shows its stdout,
- a block with `title="FILE"` is that file,
- the `text` block behind a command is what it printed, stdout and stderr together; a line `...` in
  it stands for lines that are left out and stays where it is,
- a `sh` block is only shown: it needs more machines, a GPU or a server.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from markdown_it import MarkdownIt

DOCS = Path(__file__).parents[1]
PAGES = [
    DOCS / "start.md",
    *(
        DOCS / "tutorials" / f"{name}.md"
        for name in (
            "own-pair",
            "check",
            "failing-run",
            "per-token",
            "cold-start",
            "alignment",
            "cluster",
        )
    ),
]
ELLIPSIS = "..."
_BY_THE_CLOCK = re.compile(  # how far it is, told every few seconds
    r"^(step \d+ of \d+, .*|[\d,]+ of [\d,]+ (answers kept|branches).*)\n", re.M
)
_NUMBER = re.compile(r"[+-]?\d[\d,]*(\.\d+)?(e[+-]?\d+)?")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    kind: str
    """bash, python, text, yaml, ..."""
    title: str | None
    """The file it is."""
    text: str
    """What stands inside."""
    lines: tuple[int, int]
    """First line of the text, and the one behind the last, from 0."""


class Failed(AssertionError):
    """A command of a page ended with another code than 0."""


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    for token in MarkdownIt().parse(page):
        if token.type == "fence" and token.map:
            kind, _, rest = token.info.strip().partition(" ")
            title = re.search(r'title="([^"]+)"', rest)
            inside = (token.map[0] + 1, token.map[1] - 1)
            yield Block(kind, title and title[1], token.content, inside)


def run_page(page: str, folder: Path) -> Iterator[tuple[Block, str]]:
    """Each output block of a page, with what its command printed in `folder`."""
    printed: str | None = None
    for block in blocks(page):
        if block.title:
            (folder / block.title).write_text(block.text, encoding="utf-8")
        elif block.kind in ("bash", "python"):
            printed = _run(block, folder)
        elif block.kind == "text" and printed is not None:
            yield block, printed
            printed = None


def _run(block: Block, folder: Path) -> str:
    shell = ["bash", "-e", "-c"] if block.kind == "bash" else [sys.executable, "-c"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [*shell, block.text],
        cwd=folder,
        env=os.environ | {"PATH": path, "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if block.kind == "bash" else subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        told = f"{done.stdout}{done.stderr or ''}"
        raise Failed(f"{block.text}\nended with {done.returncode}:\n{told}")
    return _BY_THE_CLOCK.sub("", done.stdout)


def shortened(printed: str, shown: str) -> str:
    """What was printed, with the lines left out that the page leaves out: same first, same last."""
    lines, kept = printed.rstrip("\n").split("\n"), shown.rstrip("\n").split("\n")
    if ELLIPSIS not in kept:
        return printed.rstrip("\n") + "\n"
    before, after = kept.index(ELLIPSIS), len(kept) - kept.index(ELLIPSIS) - 1
    tail = lines[len(lines) - after :]
    return "\n".join([*lines[:before], ELLIPSIS, *tail]) + "\n"


def structure(text: str) -> list[str]:
    """Lines without their numbers and the width these take."""
    masked = _NUMBER.sub("N", text).replace("(N)", "")
    return [" ".join(line.split()) for line in masked.strip().splitlines()]


def alike(shown: str, printed: str) -> bool:
    """Whether four of five lines are the same but for their numbers.

    Arithmetic differs a little from machine to machine, and with it samples, accuracies and now and
    then a line of what is said of them. A short output must be the same in every line.
    """
    pair = structure(shown), structure(shortened(printed, shown))
    return SequenceMatcher(None, *pair, autojunk=False).ratio() >= 0.8


def written(page: str, folder: Path) -> str:
    """The page, run, with what it printed."""
    lines = page.split("\n")
    for block, printed in reversed(list(run_page(page, folder))):
        new = shortened(printed, block.text).rstrip("\n").split("\n")
        lines[slice(*block.lines)] = new
    return "\n".join(lines)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        for file in PAGES:
            file.write_text(written(file.read_text(encoding="utf-8"), Path(name)), encoding="utf-8")
            print(file)
