"""Write the reference pages that are made from the parser and from the config's classes.

make pages          # after a change of a flag, a verb or a setting; a test finds what is stale
"""

import os
import re
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from io import BytesIO, TextIOWrapper
from pathlib import Path
from unittest.mock import patch

from tutelage.cli import VERBS, main
from tutelage.cli.arguments import SETTINGS_TOLD
from tutelage.cli.rescue import RECIPES
from tutelage.config.describing import settings_page

FOLDER = Path(__file__).parents[1] / "reference"
MADE = "<!-- Made by `make pages`; what is written here by hand is lost. -->\n"
LAB = ("SUITE", "population", "build")


def pages() -> dict[Path, str]:
    """The text of every generated page, by its file."""
    return {FOLDER / "cli.md": cli_page(), FOLDER / "configuration.md": configuration_page()}


def cli_page() -> str:
    """Every verb as its `--help` tells it, without the settings, which have a page."""
    codes = "".join(f"| {code} | {meaning} |\n" for code, meaning in _exit_codes())
    parts = [
        f"""{MADE}# Command line

Data goes to stdout, progress to stderr; `--json` makes the data one JSON object. Each verb
is also a Python function ([Python](python.md)).

{_fence(_help([]))}
| exit code | means |
|---|---|
{codes}"""
    ]
    for words in _commands():
        parts.append(f"\n## {' '.join(words)}\n\n{_fence(_help(words))}")
    return "".join(parts)


def configuration_page() -> str:
    """Every setting: its key, what it means, its choices and its default."""
    parts = [
        f"""{MADE}# Settings

A run is a YAML file of these keys, nested at the dots: `student.path` is `student: {{path: ...}}`.
Each is a flag as well, `--student.path`, and a flag wins over the file. An unknown key is an error
that suggests the nearest one. `tutelage plan -c run.yaml` prints what they come to; a run keeps it
as `config.yaml`. Text in brackets is the default.
"""
    ]
    for block in settings_page().strip().split("\n\n"):
        first, *lines = block.splitlines()
        name, _, meaning = first.partition(": ")
        parts.append(f"\n## {name}\n\n{_cell(meaning)}\n\n| key | meaning |\n|---|---|\n")
        parts += (f"| `{key}` | {_cell(text)} |\n" for key, text in _entries(lines))
    return "".join(parts)


def _entries(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Keys with their meaning, from lines that were wrapped for a terminal."""
    joined = re.sub(r"\n {8}", " ", "\n".join(lines))
    for line in joined.splitlines():
        key, _, text = line.strip().removeprefix("--").partition("  ")
        yield key, text


def _cell(text: str) -> str:
    """Text that markdown shows as it is, in a table too; `code` stays code."""
    pieces = re.split(r"(`[^`]*`)", text)
    shown = (
        piece if piece.startswith("`") else re.sub(r"([\\*_<\[\]])", r"\\\1", piece)
        for piece in pieces
    )
    return "".join(shown).replace("|", r"\|")


def _commands() -> Iterator[list[str]]:
    for verb in VERBS:
        yield [verb]
        yield from ([verb, recipe] for recipe in (RECIPES if verb == "rescue" else ()))
        yield from ([verb, name] for name in (LAB if verb == "lab" else ()))


def _help(words: list[str]) -> str:
    out = TextIOWrapper(BytesIO(), encoding="utf-8")
    width = patch.dict(os.environ, COLUMNS="92")
    with width, redirect_stdout(out), suppress(SystemExit):
        main([*words, "--help"])
    out.seek(0)
    before, told, after = out.read().partition(SETTINGS_TOLD)
    return before + (f"Settings: see their page.\n\n{after[after.index('╭') :]}" if told else "")


def _exit_codes() -> Iterator[tuple[int, str]]:
    """Each code with what the errors that carry it say of themselves."""
    from tutelage import errors

    told: dict[int, list[str]] = {
        0: ["Done."],
        1: ["A fault of tutelage itself, with its traceback."],
        3: ["`check` says something else than go."],
    }
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, errors.TutelageError):
            told.setdefault(error.exit_code, []).append((error.__doc__ or "").split("\n")[0])
    told[1].pop()  # that of their base
    yield from ((code, " ".join(meanings)) for code, meanings in sorted(told.items()))


def _fence(text: str) -> str:
    lines = (line.rstrip() for line in text.strip("\n").splitlines())
    return "```text\n" + "\n".join(lines) + "\n```\n"


if __name__ == "__main__":
    for file, text in pages().items():
        file.write_text(text, encoding="utf-8")
