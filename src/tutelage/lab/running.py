"""Run suites: every arm of every seed once, whatever is killed; then the verdicts."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tutelage.errors import Interrupted, Preempted, UsageError, did_you_mean
from tutelage.lab.arms import FULL, SHORT, Arm, Place
from tutelage.lab.kept import TASKS, KeptModels
from tutelage.lab.suites import SUITES, Suite
from tutelage.lab.verdicts import Estimate, Part, Seed, State, Word, estimate, state_of, word_of
from tutelage.paths import usable_path
from tutelage.runs.directory import environment, full_disk_told, replace_text, to_json
from tutelage.runs.ledger import Ledger
from tutelage.runs.lock import locked
from tutelage.runs.seals import digest_of

Observer = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One suite's verdict and what it is made of."""

    name: str
    suite: Suite
    word: Word
    parts: list[tuple[Part, Estimate, State]]
    """Each part with its estimate, and whether it holds."""
    shown: dict[str, Estimate]
    """What the figure shows."""
    curves: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """Metric -> arm -> steps, mean and ends of the interval over seeds."""
    failed: dict[int, str] = field(default_factory=dict)
    """Seeds that are left out, and why."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "suite": self.name,
            "claim": self.suite.claim,
            "mirrors": self.suite.mirrors,
            "caution": self.suite.caution,
            "unit": self.suite.unit,
            "verdict": self.word,
            "parts": [
                {
                    "says": part.says,
                    **({"above": part.above} if part.above is not None else {"below": part.below}),
                    "state": state,
                    **found.to_dict(),
                }
                for part, found, state in self.parts
            ],
            "shown": {label: found.to_dict() for label, found in self.shown.items()},
            "curves": self.curves,
            "left_out": {str(seed): why for seed, why in self.failed.items()},
        }


@dataclass(frozen=True, kw_only=True)
class LabResult:
    """Verdicts of the suites that were asked for."""

    folder: Path
    task: str
    short: bool
    seeds: int
    suites: list[Judged]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "task": self.task,
            "short": self.short,
            "seeds": self.seeds,
            "suites": [judged.to_dict() for judged in self.suites],
        }


def lab_suites(
    names: Sequence[str],
    *,
    task: str = "running",
    seeds: int = 5,
    short: bool = False,
    output: str | Path = "runs/lab",
    observer: Observer = lambda record: None,
) -> LabResult:
    """The verb `lab`: run what is not done in `output`, judge the suites and write `lab.json`.

    Args:
        names: of suites; `all` takes every one.
        task: `running` (the total's last digit) or `mod` (the total modulo 31).
        seeds: how many, from 1 on; each has models, prompts and samples of its own.
        short: tiny models and two steps, to see that everything runs.
        output: folder of models, ledger, runs and results; what is done there is not done again.
        observer: hears of every unit.

    Raises:
        UsageError: there is no such suite or task, or another process is at work in the folder.
        Preempted: a signal asked for a stop; the same command goes on.
    """
    chosen = _suites(names)
    if task not in TASKS:
        raise UsageError(f"there is no task {task!r}. {did_you_mean(task, TASKS)}")
    if seeds < 1:
        raise UsageError(f"seeds is {seeds}; at least one is needed, and two for an interval")
    folder = usable_path(output, "lab folder")
    with full_disk_told(folder), locked(folder / "at-work"):
        home = folder / (f"{task}-short" if short else task)
        models = KeptModels(home / "models", TASKS[task], short=short)
        models.folder.mkdir(parents=True, exist_ok=True)
        replace_text(home / "environment.json", to_json(environment()))
        size = SHORT if short else FULL
        ledger = Ledger(home / "units.jsonl")
        judged: list[Judged] = []
        for name, suite in chosen.items():
            places = [
                Place(models=models, seed=seed, size=size, folder=home / f"seed-{seed}")
                for seed in range(1, seeds + 1)
            ]
            found = {
                place.seed: {
                    arm: _once(ledger, arm, work, place, observer)
                    for arm, work in suite.arms.items()
                }
                for place in places
            }
            judged.append(judge_suite(name, suite, found))
            observer({"kind": "verdict", "suite": name, "verdict": judged[-1].word})
            result = LabResult(folder=home, task=task, short=short, seeds=seeds, suites=judged)
            replace_text(home / "lab.json", to_json(result.to_dict()))
    return result


def judge_suite(
    name: str, suite: Suite, found: Mapping[int, Mapping[str, Mapping[str, Any]]]
) -> Judged:
    """The verdict from the numbers of each seed; pure.

    A seed that lacks an arm, since a model of it did not reach its target, is left out.
    """
    failed = {
        seed: next(str(arm["failed"]) for arm in arms.values() if "failed" in arm)
        for seed, arms in found.items()
        if any("failed" in arm for arm in arms.values())
    }
    seeds = {seed: Seed(arms) for seed, arms in found.items() if seed not in failed}
    parts: list[tuple[Part, Estimate, State]] = []
    for part in suite.parts:
        value = estimate(part.of, seeds)
        parts.append((part, value, state_of(value, above=part.above, below=part.below)))
    return Judged(
        name=name,
        suite=suite,
        word=word_of([state for _, _, state in parts]),
        parts=parts,
        shown={label: estimate(of, seeds) for label, of in suite.shown.items()},
        curves=_curves(seeds, suite.draws),
        failed=failed,
    )


def _suites(names: Sequence[str]) -> dict[str, Suite]:
    for name in names:
        if name not in SUITES and name != "all":
            raise UsageError(f"there is no suite {name!r}. {did_you_mean(name, SUITES)}")
    return {name: suite for name, suite in SUITES.items() if name in names or "all" in names}


def _once(
    ledger: Ledger, name: str, arm: Arm, place: Place, observer: Observer
) -> Mapping[str, Any]:
    """The numbers of an arm, from the ledger where it is done."""
    made_of = [place.models.digest(model, place.seed) for model in arm.models]
    unit = f"{place.seed}/{digest_of(f'{arm!r} {place.size!r} {made_of}')}"
    if unit in ledger:
        return ledger[unit]
    observer({"kind": "unit", "arm": name, "seed": place.seed})
    place.folder.mkdir(parents=True, exist_ok=True)
    started = time.process_time()
    try:
        numbers = arm.run(place)
    except UsageError as error:
        if "until_accuracy" not in str(error):
            raise
        numbers = {"failed": str(error)}
    except Preempted as error:
        kind = Interrupted if isinstance(error, Interrupted) else Preempted
        raise kind(
            f"stopped in {name}, seed {place.seed}; what is finished is kept in "
            f"{ledger.path.parent}, and the same command goes on"
        ) from None
    numbers["cpu_s"] = round(time.process_time() - started, 1)
    ledger.record(unit, {"arm": name, "what": repr(arm), **numbers})
    return numbers


def _curves(seeds: Mapping[int, Seed], keys: Sequence[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Every distilled arm by step, mean and interval over seeds."""
    told: dict[str, dict[str, dict[str, Any]]] = {}
    first = next(iter(seeds.values()), None)
    for arm, record in (first.arms if first else {}).items():
        if "steps" not in record:
            continue
        for key in keys:
            columns = [s.arms[arm]["curves"].get(key) for s in seeds.values()]
            if any(column is None or None in column for column in columns):
                continue
            by_step = [
                Estimate(values=dict(enumerate(values))) for values in zip(*columns, strict=True)
            ]
            told.setdefault(key, {})[arm] = {
                "steps": record["steps"],
                "mean": [e.mean for e in by_step],
                "interval": [e.interval and list(e.interval) for e in by_step],
            }
    return told
