"""Shared reading and printing of the verbs."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from tutelage.terminal import printable

T = TypeVar("T")
SETTINGS_TOLD = "Settings, from the file or as flags (later wins):"
SETTINGS_HELP = Path(__file__).with_name("settings.txt")


def parse(verb: Callable[..., T], words: Sequence[str]) -> T:
    """Call `verb` with its flags."""
    return tyro.cli(verb, args=list(words), prog=_prog(verb), description=_page(verb))


def parse_with_settings(
    verb: Callable[..., Callable[[list[str]], T]],
    words: Sequence[str],
    *,
    tell_settings: bool = False,
) -> T:
    """Call `verb` with its flags; what it returns gets the `--section.key value` words.

    With `tell_settings` the help page holds every setting.
    """
    rest: list[str]
    told = f"\n\n{SETTINGS_TOLD}\n\n{settings_help()}" if tell_settings else ""
    call, rest = tyro.cli(
        verb,
        args=list(words),
        prog=_prog(verb),
        description=_page(verb) + told,
        return_unknown_args=True,
    )
    return call(rest)


def put(value: object) -> None:
    """Text on stdout; model output and paths in it are shown to a terminal, never obeyed."""
    text = str(value)
    print(printable(text) if sys.stdout.isatty() else text, flush=True)


def print_json(value: Mapping[str, Any]) -> None:
    """The verb's result as one JSON object on stdout; on a terminal without what it would obey."""
    put(json.dumps(value, allow_nan=False, ensure_ascii=False))


def print_lines(value: Mapping[str, Any]) -> None:
    """The verb's result for a reader."""
    width = max(map(len, value), default=0)
    for key, item in value.items():
        put(f"{key:{width}}  {f'{item:.4g}' if isinstance(item, float) else item}")


def show(value: Mapping[str, Any], as_json: bool) -> None:
    """The verb's result on stdout."""
    (print_json if as_json else print_lines)(value)
    sys.stdout.flush()


def settings_help() -> str:
    """The keys of the config with their meaning, for help pages.

    Read from a file, since building the config's classes takes longer than a help page may;
    a test holds it equal to `write_settings_help`.
    """
    return SETTINGS_HELP.read_text(encoding="utf-8").rstrip("\n")


def write_settings_help() -> str:
    """The text of `settings.txt`, from the config itself; `make settings-help` writes it."""
    from tutelage.config.describing import settings_page

    return settings_page()


def _prog(verb: Callable[..., Any]) -> str:
    return f"tutelage {verb.__name__.rstrip('_').replace('_', ' ')}"


def _page(verb: Callable[..., Any]) -> str:
    return (verb.__doc__ or "").split("Args:")[0].strip()
