"""Make pairs of the population, and hold them beside those that the predictor learnt from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.config import Engine, LocalEngine
from tutelage.diagnose.prediction import FEATURES, UNSEEN, features_of, kept_pairs, unseen
from tutelage.errors import Interrupted, Preempted, Stop, UsageError, did_you_mean
from tutelage.lab.arms import SHORT, Arm, Place
from tutelage.lab.foretelling import Foretold, judge_predictor
from tutelage.lab.kept import TASKS, KeptModels
from tutelage.lab.population import KINDS, POPULATION, group_recipes, pair
from tutelage.lab.running import done, unit_of
from tutelage.paths import usable_path
from tutelage.runs.directory import environment, full_disk_told, replace_text, to_json
from tutelage.runs.ledger import Ledger
from tutelage.runs.lock import locked
from tutelage.scale.engines import workers_of
from tutelage.scale.units import Job

Observer = Callable[[dict[str, Any]], None]
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Made:
    """Pairs that were asked for."""

    folder: Path
    rows: list[Row]
    """One a pair: task, number, kind, verdict, accuracies `before`, `after` and `teacher`, the
    gain's interval, and the features."""
    kept: Mapping[tuple[str, int], Row]
    """Those the package ships, by task and number."""
    foretold: Foretold | None = None
    """How well pairs of each kind are foretold from the other kinds; None for few kinds."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `kept` beside every row that the package ships too."""
        return {
            "pairs": [
                {**row, **({"kept": kept} if (kept := self.kept.get(key_of(row))) else {})}
                for row in self.rows
            ],
            **({"foretold": self.foretold.to_dict()} if self.foretold is not None else {}),
        }


def key_of(row: Mapping[str, Any]) -> tuple[str, int]:
    """Task and number."""
    return str(row["task"]), int(row["number"])


def lab_population(
    numbers: Sequence[int] = (),
    *,
    tasks: Sequence[str] = tuple(TASKS),
    count: int = 60,
    short: bool = False,
    output: str | Path = "runs/population",
    engine: Engine | None = None,
    observer: Observer = lambda record: None,
) -> Made:
    """The verb `lab population`: check and train generated pairs; what is done is not done again.

    Args:
        numbers: of the pairs, from 0 on (`lab/population.py` tells what they are); none takes the
            first `count`.
        tasks: names of the tasks whose pairs are made.
        count: how many pairs a task, where no numbers are given.
        short: models and runs of a few steps, to see that everything runs.
        output: folder of models, ledgers and `population.parquet`.
        engine: who makes the pairs; they are the same.
        observer: hears of every pair that is made, and of workers that die.

    Raises:
        UsageError: a number below 0, a task there is not, or another process in the folder.
        Preempted: a signal asked for a stop; the same command goes on.
    """
    for task in tasks:
        if task not in TASKS:
            raise UsageError(f"there is no task {task!r}. {did_you_mean(task, TASKS)}")
    if min(numbers, default=0) < 0 or count < 1:
        raise UsageError("pairs are numbered from 0 on, and at least one is needed")
    wanted = list(dict.fromkeys(numbers)) or list(range(count))
    folder = usable_path(output, "folder of the population")
    rows: list[Row] = []
    with full_disk_told(folder), locked(folder / "at-work"):
        replace_text(folder / "environment.json", to_json(environment()))
        for task in tasks:
            home = folder / (f"{task}-short" if short else task)
            rows += _pairs(home, task, wanted, short, engine or LocalEngine(), observer)
        if not short:
            write_pairs(folder / "population.parquet", rows)
    return Made(
        folder=folder,
        rows=rows,
        kept={} if short else {key_of(row): row for row in kept_pairs()},
        foretold=None if short or numbers else judge_predictor(rows),
    )


def _pairs(
    home: Path, task: str, numbers: Sequence[int], short: bool, engine: Engine, observer: Observer
) -> list[Row]:
    (home / "models").mkdir(parents=True, exist_ok=True)
    ledger = Ledger(home / "pairs.jsonl")
    wanted: dict[str, tuple[int, Arm, Place]] = {}
    for number in numbers:
        group = number // len(KINDS)
        recipes = group_recipes(group, TASKS[task], short=short)
        made, seed = pair(number, TASKS[task])
        place = Place(
            models=KeptModels(home / "models", TASKS[task], recipes=recipes),
            seed=seed,
            size=SHORT if short else POPULATION,
            folder=home / f"group-{group}",
        )
        wanted[f"{task} {number}, {made.kind}"] = number, made, place
    missing = {
        name: (name, arm, place)
        for name, (_, arm, place) in wanted.items()
        if unit_of(arm, place) not in ledger
    }

    def tell(text: str) -> None:
        observer({"kind": "note", "text": text})

    try:
        with workers_of(engine, "student", "teacher", tell=tell) as map_units:
            for name, found in map_units(Job(prepare=_nothing, work=_made), missing):
                _, arm, place = wanted[name]
                ledger.record(unit_of(arm, place), found)
                observer({"kind": "unit", "arm": name, "seed": place.seed})
    except (Stop, Preempted) as stop:
        kind = Interrupted if isinstance(stop, Interrupted) else Preempted
        raise kind(
            f"stopped; every pair that is finished is kept in {home}, and the same command goes on"
        ) from None
    rows = []
    for number, arm, place in wanted.values():
        rows.append(_row(task, number, ledger[unit_of(arm, place)]))
        observer({"kind": "pair", **rows[-1]})
    return rows


def _nothing() -> None:
    """What a pair needs it loads itself."""


def _made(held: None, unit: tuple[str, Arm, Place]) -> dict[str, Any]:
    """Check and train one pair."""
    return done(*unit)


def _row(task: str, number: int, found: Mapping[str, Any]) -> Row:
    low, high = found["gain"]
    return {
        "task": task,
        "number": number,
        "kind": found["kind"],
        "verdict": found["verdict"],
        "before": found["before"],
        "after": found["after"],
        "teacher": found["teacher"],
        "gain_low": low,
        "gain_high": high,
        **features_of(found["look"]),
    }


def write_pairs(path: Path, rows: Sequence[Row]) -> None:
    """The rows as parquet, with what is foretold of each by pairs of other kinds.

    A feature that was not measured is null, and so is what is foretold of a single kind.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ("task", "number", "kind", "verdict", "before", "after", "teacher")
    columns = (*names, "gain_low", "gain_high", *FEATURES)
    table = {name: [row.get(name) for row in rows] for name in columns}
    if len({row["kind"] for row in rows}) > 1:
        table |= dict(zip(UNSEEN, map(list, unseen(rows)), strict=True))
    pq.write_table(pa.table(table), path)
