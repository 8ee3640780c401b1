"""tutelage lab"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from tutelage.cli.arguments import parse, print_json, put
from tutelage.errors import UsageError

HELP = """usage: tutelage lab SUITE [SUITE ...] [options]     tutelage lab SUITE --help

  list        the suites: what each claims, and the published figure it mirrors
  all         every suite
  SUITE       run what is not done of it, and judge it over seeds
  population  check and train generated pairs, those that `check` predicts from
  build       train the embedded student and teachers anew
"""


def run(words: Sequence[str]) -> None:
    """Read the arguments and call the verb."""
    if not words or words[0] in ("-h", "--help"):
        print(HELP, end="")
    elif words[0] == "list":
        if words[1:]:
            raise UsageError("lab list takes no arguments")
        from tutelage.lab.told import listed

        put(listed())
    elif words[0] == "build":
        parse(build, words[1:])
    elif words[0] == "population":
        parse(population, words[1:])
    else:
        parse(lab, words)


def lab(
    suites: Annotated[tuple[str, ...], tyro.conf.Positional],
    *,
    task: str = "running",
    seeds: int = 5,
    first_seed: int = 1,
    steps: int | None = None,
    short: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/lab"),
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Re-run published phenomena on tiny models, seed by seed, and judge each over the seeds.

    Models and arms are kept in the output folder and shared among suites; the same command goes on
    where it was stopped. A page with a figure and a verdict a suite is written there.

    Args:
        suites: names that `tutelage lab list` shows, or `all`.
        task: running (the last digit of a sum) or mod (a sum modulo 31).
        seeds: how many, each with models, prompts and samples of its own.
        first_seed: the first of them.
        steps: of distillation; by default as many as the thresholds were chosen for.
        short: tiny models and two steps, in seconds; proves that everything runs, no claim.
        output: folder for models, runs, results and the page.
        as_json: print one JSON object on stdout.
    """
    import torch

    from tutelage.cli.progress import say
    from tutelage.lab.running import lab_suites
    from tutelage.lab.told import as_text
    from tutelage.reports.page import write_report

    def tell(record: dict[str, Any]) -> None:
        if record["kind"] == "unit":
            say(f"seed {record['seed']}  {record['arm']}")
        else:
            say(f"{record['suite']}: {record['verdict']}")

    torch.set_num_threads(1)  # models this small only lose time to a second thread
    found = lab_suites(
        suites,
        task=task,
        seeds=seeds,
        first_seed=first_seed,
        steps=steps,
        short=short,
        output=output,
        observer=tell,
    )
    page = write_report([found.folder])
    if as_json:
        print_json(found.to_dict() | {"report": str(page)})
    else:
        put(f"{as_text(found)}\n\n{page}")


def population(
    numbers: Annotated[tuple[int, ...], tyro.conf.Positional] = (),
    *,
    task: tuple[str, ...] = ("running", "mod"),
    count: int = 60,
    short: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/population"),
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    workers: int = 2,
    cpus: float = 1.0,
    gpus: float = 0.0,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Check and train generated pairs, and say how well their gains are foretold.

    Every pair can be made alone, in about a minute of one core; beside it stands what the package's
    own row says of it. The same command goes on where it was stopped.

    Args:
        numbers: of the pairs, from 0 on; without any, the first `count` are made.
        task: running (the last digit of a sum), mod (a sum modulo 31), or both.
        count: pairs a task, where no numbers are given.
        short: models and runs of a few steps; proves that everything runs, no more.
        output: folder of models, ledgers and population.parquet; shared by all hosts.
        engine: who makes pairs: this process, or workers that Ray places; they are the same.
        address: of Ray, as ray://HOST:10001 or HOST:6379; without it Ray is started here.
        workers: how many make pairs, with ray.
        cpus: processors of each worker; it computes with as many threads.
        gpus: accelerators of each worker.
        as_json: print one JSON object on stdout.
    """
    import torch

    from tutelage.cli.progress import say
    from tutelage.config import RayEngine, section
    from tutelage.lab.pairing import lab_population
    from tutelage.lab.told import pairs_as_text

    def tell(record: dict[str, Any]) -> None:
        if record["kind"] == "unit":
            say(record["arm"])
        elif record["kind"] == "note":
            say(f"{record['text']}.")

    torch.set_num_threads(1)
    held = {"cpus": cpus, "gpus": gpus}
    placed = {"address": address, "workers": workers, "student": held, "teacher": {"cpus": cpus}}
    found = lab_population(
        numbers,
        tasks=task,
        count=count,
        short=short,
        output=output,
        engine=None if engine == "local" else section(RayEngine, placed),
        observer=tell,
    )
    if as_json:
        print_json(found.to_dict())
    else:
        put(pairs_as_text(found))


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

    torch.set_num_threads(1)
    total = sum(training.steps for training in EMBEDDED_SPEC.models.values())
    with LabDisplay(total) as display:
        paths = run_build(
            output or ZOO,
            seed=EMBEDDED_SEED if seed is None else seed,
            progress=display.on_lab_step,
        )
    for name, path in paths.items():
        put(f"{name}  {path}")
