"""tutelage watch"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from tutelage.cli.arguments import parse, print_json


def run(words: Sequence[str]) -> None:
    """Read the arguments and call the verb."""
    parse(watch, words)


def watch(
    run: Annotated[Path, tyro.conf.Positional],
    *,
    once: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    every: float = 1.0,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Show how a run goes, until it ends; reads its files and writes nothing.

    Args:
        run: the run directory.
        once: show how it stands now, and end.
        every: seconds between two looks.
        as_json: print one JSON object on stdout when the run has ended, or with --once now.
    """
    from tutelage.watching.following import watch as run_watch

    if as_json:
        print_json(run_watch(run, once=once, poll_s=every).to_dict())
        return
    from tutelage.cli.progress import WatchDisplay, draw

    if once:
        draw(run_watch(run, once=True), sys.stdout)
        return
    with WatchDisplay() as display:
        run_watch(run, observer=display, poll_s=every)
