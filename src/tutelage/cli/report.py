"""tutelage report"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from tutelage.cli.arguments import parse


def run(words: Sequence[str]) -> None:
    """Read the arguments and call the verb."""
    parse(report, words)


def report(runs: Annotated[tuple[Path, ...], tyro.conf.Positional]) -> None:
    """Write report.html into the first of the run directories; further ones are compared.

    Args:
        runs: run directories.
    """
    from tutelage.errors import UsageError
    from tutelage.reports.page import write_report

    if not runs:
        raise UsageError("report needs at least one run directory")
    print(write_report(runs))
