"""Run suites: every arm of every seed once, whatever is killed; then the verdicts."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tutelage.errors import Interrupted, Preempted, UsageError, did_you_mean
from tutelage.lab.arms import FULL, SHORT, Arm, Place, Size
from tutelage.lab.kept import TASKS, KeptModels
from tutelage.lab.suite import Suite
from tutelage.lab.suites import SUITES
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
    profiles: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """Metric -> arm and when -> places in the answer, mean and ends of the interval over seeds."""
    failed: dict[int, str] = field(default_factory=dict)
    """Seeds that are left out, and why."""
    cpu_s: float = 0.0
    """Processor seconds of its arms and of the models that were first trained for them."""

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
            "profiles": self.profiles,
            "left_out": {str(seed): why for seed, why in self.failed.items()},
            "cpu_s": round(self.cpu_s, 1),
        }


@dataclass(frozen=True, kw_only=True)
class LabResult:
    """Verdicts of the suites that were asked for, and of the others that are done."""

    folder: Path
    task: str
    short: bool
    seeds: int
    first_seed: int = 1
    steps: int
    """Of distillation."""
    suites: list[Judged]
    """Those that were asked for."""
    others: list[Judged] = field(default_factory=list)
    """The rest of those whose arms are all done, with these seeds and this size."""
    cpu_s: float = 0.0
    """Processor seconds of all arms of `suites`, each counted once."""

    @property
    def judged_size(self) -> bool:
        """Whether this is the size that the thresholds were chosen for."""
        return not self.short and self.steps == FULL.steps

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, suites in the order of `lab list`."""
        order = list(SUITES)
        judged = sorted([*self.suites, *self.others], key=lambda found: order.index(found.name))
        return {
            "task": self.task,
            "short": self.short,
            "seeds": self.seeds,
            "first_seed": self.first_seed,
            "steps": self.steps,
            "judged_size": self.judged_size,
            "cpu_s": round(self.cpu_s, 1),
            "suites": [found.to_dict() for found in judged],
        }


def lab_suites(
    names: Sequence[str],
    *,
    task: str = "running",
    seeds: int = 5,
    first_seed: int = 1,
    steps: int | None = None,
    short: bool = False,
    output: str | Path = "runs/lab",
    observer: Observer = lambda record: None,
) -> LabResult:
    """The verb `lab`: run what is not done in `output`, judge the suites and write `lab.json`.

    Args:
        names: of suites; `all` takes every one of the task.
        task: `running` (the total's last digit) or `mod` (the total modulo 31).
        seeds: how many; each has models, prompts and samples of its own.
        first_seed: the first of them.
        steps: of distillation; None takes those that the thresholds were chosen for.
        short: tiny models and two steps, to see that everything runs.
        output: folder of models, ledger, runs and results; what is done there is not done again.
        observer: hears of every unit.

    Raises:
        UsageError: there is no such suite or task, or another process is at work in the folder.
        Preempted: a signal asked for a stop; the same command goes on.
    """
    if task not in TASKS:
        raise UsageError(f"there is no task {task!r}. {did_you_mean(task, TASKS)}")
    chosen = _suites(names, task)
    size = _size(seeds, first_seed, steps, short=short)
    folder = usable_path(output, "lab folder")
    with full_disk_told(folder), locked(folder / "at-work"):
        home = folder / (f"{task}-short" if short else task)
        models = KeptModels(home / "models", TASKS[task], short=short)
        models.folder.mkdir(parents=True, exist_ok=True)
        replace_text(home / "environment.json", to_json(environment()))
        ledger = Ledger(home / "units.jsonl")
        places = [
            Place(models=models, seed=seed, size=size, folder=home / f"seed-{seed}")
            for seed in range(first_seed, first_seed + seeds)
        ]
        judged: list[Judged] = []
        spent: dict[str, float] = {}
        for name, suite in chosen.items():
            found: dict[int, dict[str, Mapping[str, Any]]] = {}
            for place in places:
                found[place.seed] = {}
                for label, arm in suite.arms.items():
                    numbers = once(ledger, label, arm, place, observer)
                    found[place.seed][label] = numbers
                    spent[unit_of(arm, place)] = numbers["cpu_s"]
            judged.append(judge_suite(name, suite, found))
            observer({"kind": "verdict", "suite": name, "verdict": judged[-1].word})
            done = {found.name for found in judged}
            result = LabResult(
                folder=home,
                task=task,
                short=short,
                seeds=seeds,
                first_seed=first_seed,
                steps=size.steps,
                suites=judged,
                others=_done(ledger, places, _others(done, task)),
                cpu_s=sum(spent.values()),
            )
            replace_text(home / "lab.json", to_json(result.to_dict()))
    return result


def _size(seeds: int, first_seed: int, steps: int | None, *, short: bool) -> Size:
    """How much work an arm is."""
    if seeds < 1:
        raise UsageError(f"seeds is {seeds}; at least one is needed, and two for an interval")
    if first_seed < 0:
        raise UsageError(f"first_seed is {first_seed}; seeds are counted from 0")
    if steps is None:
        return SHORT if short else FULL
    if short:
        raise UsageError(f"short runs take {SHORT.steps} steps; leave steps or short out")
    if steps < 1:
        raise UsageError(f"steps is {steps}; at least one is needed")
    return replace(FULL, steps=steps)


def _others(done: Collection[str], task: str) -> dict[str, Suite]:
    return {n: suite for n, suite in SUITES.items() if n not in done and task in suite.tasks}


def _done(ledger: Ledger, places: Sequence[Place], suites: Mapping[str, Suite]) -> list[Judged]:
    """The suites of which the ledger has every arm of every seed."""
    judged = []
    for name, suite in suites.items():
        if not all(
            unit_of(arm, place) in ledger for place in places for arm in suite.arms.values()
        ):
            continue
        found = {
            place.seed: {label: ledger[unit_of(arm, place)] for label, arm in suite.arms.items()}
            for place in places
        }
        judged.append(judge_suite(name, suite, found))
    return judged


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
        profiles=_profiles(seeds, suite.draws_by_place),
        failed=failed,
        cpu_s=sum(arm.get("cpu_s", 0.0) for arms in found.values() for arm in arms.values()),
    )


def _suites(names: Sequence[str], task: str) -> dict[str, Suite]:
    for name in names:
        if name not in SUITES and name != "all":
            raise UsageError(f"there is no suite {name!r}. {did_you_mean(name, SUITES)}")
        if name != "all" and task not in SUITES[name].tasks:
            raise UsageError(
                f"suite {name!r} is not made for task {task!r}, only for "
                f"{', '.join(SUITES[name].tasks)}; leave it out, or change --task"
            )
    return {
        name: suite
        for name, suite in SUITES.items()
        if name in names or ("all" in names and task in suite.tasks)
    }


def unit_of(arm: Arm, place: Place) -> str:
    """The name of an arm's numbers in the ledger."""
    made_of = [place.models.digest(model, place.seed) for model in arm.models]
    return f"{place.seed}/{digest_of(f'{arm!r} {place.size!r} {made_of}')}"


def once(
    ledger: Ledger, name: str, arm: Arm, place: Place, observer: Observer
) -> Mapping[str, Any]:
    """The numbers of an arm, from the ledger where it is done; else as `done`.

    Raises:
        Preempted: a signal asked for a stop.
    """
    unit = unit_of(arm, place)
    if unit not in ledger:
        observer({"kind": "unit", "arm": name, "seed": place.seed})
        try:
            ledger.record(unit, done(name, arm, place))
        except Preempted as error:
            kind = Interrupted if isinstance(error, Interrupted) else Preempted
            raise kind(
                f"stopped in {name}, seed {place.seed}; what is finished is kept in "
                f"{ledger.path.parent}, and the same command goes on"
            ) from None
    return ledger[unit]


def done(name: str, arm: Arm, place: Place) -> dict[str, Any]:
    """Do an arm: its numbers, with what it is and its processor seconds.

    `failed` is all there is of numbers where a model of it misses its target.
    """
    place.folder.mkdir(parents=True, exist_ok=True)
    started = time.process_time()
    try:
        numbers = arm.run(place)
    except UsageError as error:
        if "until_accuracy" not in str(error):
            raise
        numbers = {"failed": str(error)}
    spent = round(time.process_time() - started, 1)
    return {"arm": name, "what": repr(arm), **numbers, "cpu_s": spent}


def _curves(seeds: Mapping[int, Seed], keys: Sequence[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Every distilled arm by step, mean and interval over seeds."""
    told: dict[str, dict[str, dict[str, Any]]] = {}
    first = next(iter(seeds.values()), None)
    for arm, record in (first.arms if first else {}).items():
        for key in keys if "steps" in record else ():
            columns = [s.arms[arm]["curves"].get(key) for s in seeds.values()]
            if drawn := _over_seeds(columns):
                told.setdefault(key, {})[arm] = {"steps": record["steps"], **drawn}
    return told


def _profiles(
    seeds: Mapping[int, Seed], keys: Sequence[str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Every arm that tells it by place in the answer, at its beginning and end."""
    told: dict[str, dict[str, dict[str, Any]]] = {}
    first = next(iter(seeds.values()), None)
    for arm, record in (first.arms if first else {}).items():
        for when in record.get("profiles", {}):
            for key in keys:
                columns = [seed.profile(arm, when, key) for seed in seeds.values()]
                # Rollouts that are cut reach the first places alone.
                reached = min(
                    next((i for i, v in enumerate(c) if v is None), len(c)) for c in columns
                )
                if drawn := _over_seeds([column[:reached] for column in columns]):
                    places = record["places"][:reached]
                    told.setdefault(key, {})[f"{arm}, {when}"] = {"places": places, **drawn}
    return told


def _over_seeds(columns: Sequence[Sequence[float | None] | None]) -> dict[str, Any]:
    """Means and intervals of the rows of columns, one a seed; none where any is undefined."""
    if not columns or any(not column or None in column for column in columns):
        return {}
    rows = zip(*[column or () for column in columns], strict=True)
    found = [Estimate(values={i: v for i, v in enumerate(row) if v is not None}) for row in rows]
    return {
        "mean": [e.mean for e in found],
        "interval": [e.interval and list(e.interval) for e in found],
    }
