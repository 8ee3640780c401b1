"""tutelage demo"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from tutelage.cli.arguments import parse, print_json, put


def run(words: Sequence[str]) -> None:
    """Read the arguments and call the verb."""
    parse(demo, words)


def demo(
    *,
    seed: int = 0,
    output: Path | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Distil the embedded teacher into the embedded student and write a report.

    Checks a compatible and an incompatible teacher first, trains on the
    compatible one, evaluates 1,000 held-out problems before and after. Takes about
    half a minute on two CPU cores and needs no network.

    Args:
        seed: decides prompts and samples.
        output: new folder for prompts, run and report; by default a fresh one under runs/.
        as_json: print one JSON object on stdout.
    """
    import torch

    from tutelage.cli.progress import Display
    from tutelage.demonstration import EVALUATE_EVERY, STEPS
    from tutelage.demonstration import demo as run_demo

    torch.set_num_threads(1)  # models this small only lose time to a second thread
    with Display(STEPS, name="demo", evaluate_every=EVALUATE_EVERY) as display:
        result = run_demo(seed=seed, output=output, observer=display)
    summary = result.summary
    if as_json:
        print_json(summary)
        return
    low, high = summary["accuracy_after_interval"]
    put(
        f"accuracy {summary['accuracy_before']:.3f} -> {summary['accuracy_after']:.3f} "
        f"[{low:.3f}, {high:.3f}], teacher {summary['teacher_accuracy']:.3f}, "
        f"{summary['seconds']:.0f} s\n"
        f"run     {summary['run_dir']}\nreport  {summary['report']}"
    )
