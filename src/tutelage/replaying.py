"""A part of a run again, with and without a change, to see whether the change mends it."""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from tutelage.config import Config, parse_config
from tutelage.diagnose.explaining import Explanation, explain
from tutelage.errors import GuardStop, UsageError
from tutelage.ops.intervals import difference_interval
from tutelage.runs.checkpoints import Checkpoint, valid_checkpoints
from tutelage.runs.directory import create_run, read_lines, replace_text, to_json
from tutelage.runs.interrupts import Interrupts
from tutelage.session import prepare
from tutelage.signals.causes import Cause
from tutelage.signals.history import KL_FELL, WINDOW, History
from tutelage.trainer import Trainer
from tutelage.training import run_steps

COMPARED = ("accuracy", "kl/reverse", "rollout/length")


@dataclass(frozen=True, kw_only=True)
class Replay:
    """The same steps twice, from one checkpoint and with the same draws."""

    cause: Cause
    """Whose change was tried."""
    start: int
    """Step both began from."""
    steps: int
    """Steps both were given."""
    began: Mapping[str, float]
    """The student where both began."""
    without: Mapping[str, float]
    """What came of the run's own settings."""
    changed: Mapping[str, float]
    """What came of the change."""
    accuracy_gain: tuple[float, float, float] | None
    """Accuracy with the change less without, with its 95 % interval over the same questions."""
    stopped: Mapping[str, str]
    """What a guard said, by arm, where one ended it."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "cause": self.cause.name,
            "change": dict(self.cause.change),
            "from_step": self.start,
            "steps": self.steps,
            "start": dict(self.began),
            "without": dict(self.without),
            "with": dict(self.changed),
            **({} if self.accuracy_gain is None else {"accuracy_gain": list(self.accuracy_gain)}),
            **({"stopped": dict(self.stopped)} if self.stopped else {}),
        }

    def summary(self) -> str:
        """A table of both, and what the difference of accuracy is worth."""
        told = ", ".join(f"{key}: {value}" for key, value in self.cause.change.items())
        lines = [
            f"Replay of {self.steps} steps from step {self.start}, against {self.cause.name}, with "
            f"{told}:",
            f"  {'':24} {'start':>9} {'as it was':>9} {'changed':>9}",
        ]
        for key in {**self.without, **self.changed}:
            cells = [
                f"{side[key]:9.3g}" if key in side else f"{'-':>9}"
                for side in (self.began, self.without, self.changed)
            ]
            lines.append(f"  {key:24} {' '.join(cells)}")
        if self.accuracy_gain is not None:
            gain, low, high = self.accuracy_gain
            lines.append(f"  accuracy gained by the change: {gain:+.3f} [{low:+.3f}, {high:+.3f}]")
        lines += [f"  {arm}: {text}" for arm, text in self.stopped.items()]
        return "\n".join(lines)


def replay(
    run: str | Path | Explanation,
    steps: int,
    *,
    cause: str | None = None,
    observer: Callable[[str], None] = lambda text: None,
) -> Replay:
    """Run `steps` steps of a run again, with and without the change that a cause proposes.

    Both begin at the newest valid checkpoint at which the student was no worse than at the start,
    or at the start, and draw with the run's seed. The run itself is only read: everything is
    written to a temporary directory beside it, which is gone at the end.

    Raises:
        UsageError: no step, no such cause, none with a setting, or a run of another library.
        TutelageError: models or prompts are no longer there.
    """
    if steps < 1:
        raise UsageError(f"a replay of {steps} steps shows nothing; give 1 or more")
    found = run if isinstance(run, Explanation) else explain(run)
    config = found.history.config
    if config is None:
        raise UsageError(f"{found.run} is a log of another library, whose steps cannot be run here")
    chosen = _choose(found, cause)
    checkpoint = _begin(found.run, found.history)
    start = 0 if checkpoint is None else checkpoint.step
    observer(
        f"replaying {steps} steps from step {start} twice, against {chosen.name} "
        f"({', '.join(chosen.change)})."
    )
    arms = {"without": config, "with": apply_change(config, chosen.change)}
    results: dict[str, Mapping[str, float]] = {}
    questions: dict[str, list[float]] = {}
    began: Mapping[str, float] = {}
    stopped: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix=".replay-", dir=found.run.resolve().parent) as folder:
        for arm, settings in arms.items():
            path = Path(folder) / arm
            told, first = _run(found.run, path, settings, checkpoint, steps, chosen.signal)
            began = began or first
            results[arm] = told.values
            if told.stopped is not None:
                stopped[arm] = told.stopped
            questions[arm] = _accuracies(path, start + steps)
            observer(f"{arm} the change: done.")
    gain = None
    if questions["with"] and len(questions["with"]) == len(questions["without"]):
        low, high = difference_interval(questions["with"], questions["without"])
        gain = (fmean(questions["with"]) - fmean(questions["without"]), low, high)
    return Replay(
        cause=chosen,
        start=start,
        steps=steps,
        began=began,
        without=results["without"],
        changed=results["with"],
        accuracy_gain=gain,
        stopped=stopped,
    )


def apply_change(config: Config, change: Mapping[str, Any]) -> Config:
    """The settings with others at the dotted names of `change`; a section is replaced whole.

    Raises:
        UsageError: they do not go together.
    """
    tree = config.model_dump(mode="json")
    for name, value in change.items():
        *parents, last = name.split(".")
        section = tree
        for parent in parents:
            section = section[parent]
        section[last] = value
    return parse_config(tree, "the changed settings")


@dataclass(frozen=True)
class _Arm:
    values: Mapping[str, float]
    stopped: str | None


def _choose(found: Explanation, name: str | None) -> Cause:
    if name is not None:
        named = [cause for cause in found.causes if cause.name == name]
        if not named:
            known = ", ".join(cause.name for cause in found.causes) or "none"
            raise UsageError(f"{name} is no cause that was found in {found.run}; found: {known}")
        if not named[0].change:
            raise UsageError(f"{name} is mended by no setting: {named[0].advice}")
        return named[0]
    changing = [cause for cause in found.causes if cause.change]
    if not changing:
        why = "; ".join(f"{cause.name}: {cause.advice}" for cause in found.causes)
        raise UsageError(
            f"no cause found in {found.run} proposes a setting, so there is nothing to try"
            + (f" ({why})" if why else "")
        )
    return changing[0]


def _begin(path: Path, history: History) -> Checkpoint | None:
    """Where a replay begins; None is the start."""
    return next(
        (c for c in valid_checkpoints(path / "checkpoints") if not _was_hurt_at(c.step, history)),
        None,
    )


def _was_hurt_at(step: int, history: History) -> bool:
    """Whether the student of this step was worse than that of the start, as far as is known."""
    before = history.begin or {}
    later = [r for r in history.evaluations if 0 < r["step"] <= step]
    trained = [r for r in history.steps if r["step"] <= step][-WINDOW:]
    if "accuracy" in before:
        judged = [r["rollout/accuracy"] for r in trained if "rollout/accuracy" in r]
        if later and "accuracy/high" in later[-1]:
            return bool(later[-1]["accuracy/high"] < before["accuracy"])
        return not judged or fmean(judged) < before["accuracy/low"]
    began = history.at_start("kl/reverse")
    now = [r["kl/reverse"] for r in trained if "kl/reverse" in r]
    return began is None or not now or fmean(now) * KL_FELL > began


def _run(
    original: Path,
    path: Path,
    config: Config,
    checkpoint: Checkpoint | None,
    steps: int,
    signal: str | None,
) -> tuple[_Arm, dict[str, float]]:
    start = 0 if checkpoint is None else checkpoint.step
    tree = config.model_dump(mode="json")
    tree["run"] |= {"dir": str(path), "steps": start + steps, "save_every": 0, "max_hours": None}
    tree["evaluation"] |= {"every": 0, "teacher": 0, "patience": 0}
    tree["guards"]["stop"] = False
    tree["align"]["probe"] = None
    config = parse_config(tree)
    run = create_run(path)
    session = prepare(config, None if checkpoint is None else str(checkpoint.path))
    trainer = Trainer(config, run, session, lambda record: None)
    if checkpoint is not None:
        for name in ("metrics.jsonl", "positions.jsonl"):
            if (original / name).is_file():
                shutil.copy(original / name, path / name)
        trainer.restore(checkpoint, {})
        trainer.evaluations.clear()
        if not config.rollout.delay_steps and config.rollout.steps_per_generation == 1:
            trainer.pending = []
        began = trainer.evaluate()
    else:
        replace_text(run.path / "config.yaml", to_json({}))
        began = trainer.evaluate()
    stopped = None
    try:
        with Interrupts() as trainer.interrupts:
            run_steps(trainer)
    except GuardStop as guard:
        stopped = str(guard)
    taken = trainer.steps[-WINDOW:] if trainer.step > start else []
    last = trainer.evaluations.get(trainer.step, {}) if trainer.step > start else {}
    values = {key: float(last[key]) for key in COMPARED if key in last}
    shown = {key: float(began[key]) for key in COMPARED if key in began}
    if signal is not None and signal not in values:
        seen = [float(record[signal]) for record in taken if signal in record]
        if seen:
            values[signal] = fmean(seen)
    return _Arm(values, stopped), shown


def _accuracies(path: Path, step: int) -> list[float]:
    """Accuracy of each held-out question at the end; empty where it was not reached or judged."""
    file = path / "eval" / f"step-{step}.jsonl"
    values = [row["accuracy"] for row in read_lines(file)] if file.is_file() else []
    return values if all(value is not None for value in values) else []
