"""tutelage report"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from tutelage.cli.arguments import parse, print_json, put


def run(words: Sequence[str]) -> None:
    """Read the arguments and call the verb."""
    parse(report, words)


def report(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional],
    *,
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
    csv: Path | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Write one HTML page about runs and results; several runs are laid over each other.

    Reads what train, align, lab, rescue cold-start, rescue controls and rescue prompts wrote,
    finished or not. What is missing or damaged is told on the page.

    Args:
        runs: their directories, the prompts file of rescue prompts, or folders that hold runs.
        output: the file to write; report.html in the first directory by default.
        csv: also write the data behind every figure into this folder, complete.
        as_json: print where the page and the data are as one JSON object.
    """
    from tutelage.errors import UsageError
    from tutelage.reports.page import write_report

    if not runs:
        raise UsageError("report needs at least one run directory")
    page = write_report(runs, output=output, csv_folder=csv)
    if as_json:
        print_json({"report": str(page)} | ({"csv": str(csv)} if csv else {}))
    else:
        put(page)
