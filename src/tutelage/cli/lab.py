"""tutelage lab"""

from collections.abc import Sequence
from pathlib import Path

from tutelage.cli.arguments import parse, put
from tutelage.errors import UsageError, did_you_mean


def run(words: Sequence[str]) -> None:
    """Read the arguments and call the verb."""
    verbs = {"build": build}
    if not words or words[0] in ("-h", "--help"):
        print(
            "usage: tutelage lab build [--output DIR] [--seed N]\n\n"
            "  build  train the embedded student and teachers anew"
        )
        return
    if words[0] not in verbs:
        raise UsageError(f"there is no lab {words[0]!r}. {did_you_mean(words[0], verbs)}")
    parse(verbs[words[0]], words[1:])


def build(*, output: Path | None = None, seed: int | None = None) -> None:
    """Train the embedded student and teachers; about 90 s on one core.

    Args:
        output: folder for the models; the package's own by default.
        seed: of weights and data; the shipped models' by default.
    """
    import torch

    from tutelage.cli.progress import LabDisplay
    from tutelage.lab.embedded import EMBEDDED_SEED, EMBEDDED_SPEC, ZOO
    from tutelage.lab.embedded import build as run_build

    torch.set_num_threads(1)  # models this small only lose time to a second thread
    total = sum(training.steps for training in EMBEDDED_SPEC.models.values())
    with LabDisplay(total) as display:
        paths = run_build(
            output or ZOO,
            seed=EMBEDDED_SEED if seed is None else seed,
            progress=display.on_lab_step,
        )
    for name, path in paths.items():
        put(f"{name}  {path}")
