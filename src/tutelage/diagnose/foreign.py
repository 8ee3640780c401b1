"""Runs of other libraries, as far as their logs carry the signals.

TRL writes `log_history` into trainer_state.json (transformers.Trainer): `loss`, `grad_norm`,
`learning_rate`; its DistillationTrainer adds `completions/mean_length` and
`completions/truncated_fraction`, its SFT-based trainers `entropy`. verl's file logger writes
{"step": .., "data": {..}} a line.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tutelage.errors import DataError, UsageError
from tutelage.runs.directory import read_lines
from tutelage.runs.records import LARGEST
from tutelage.signals.history import History

TRL_KEYS = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "lr",
    "entropy": "entropy/student",
    "completions/mean_length": "rollout/length",
    "completions/truncated_fraction": "rollout/truncated",
}
VERL_KEYS = {
    "actor/grad_norm": "grad_norm",
    "actor/lr": "lr",
    "actor/entropy": "entropy/student",
    "actor/distillation/loss": "loss",
    # On the teacher's top-k, which verl's distillation compares.
    "actor/distillation/student_mass": "support/student_mass",
    "actor/distillation/teacher_mass": "support/teacher_mass",
    "actor/distillation/overlap_ratio": "overlap/ratio",
    "actor/distillation/overlap_token_advantage": "overlap/advantage",
    "response_length/mean": "rollout/length",
    "response_length/clip_ratio": "rollout/truncated",
    "rollout_corr/k3_kl": "rollout/drift_k3",
    "critic/score/mean": "rollout/accuracy",
}


def trl_state(path: Path) -> Path | None:
    """The trainer_state.json of an output directory, of its newest checkpoint, or the file."""
    if path.is_file():
        return path if path.name == "trainer_state.json" else None
    if (own := path / "trainer_state.json").is_file():
        return own
    kept = {
        int(found.parent.name.rpartition("-")[2]): found
        for found in path.glob("checkpoint-*/trainer_state.json")
        if found.parent.name.rpartition("-")[2].isdigit()
    }
    return kept[max(kept)] if kept else None


def read_trl(path: Path) -> tuple[History, list[str]]:
    """The history in a trainer_state.json.

    Raises:
        UsageError: it cannot be read, or holds no history.
    """
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise UsageError(
            f"{path} has no log_history; it is not the state of a transformers Trainer"
        )
    # The last entry of a finished run sums it up, and entries of evaluations begin with eval_.
    logged = [entry for entry in history if "loss" in entry and _is_number(entry.get("step"))]
    return _history(logged, TRL_KEYS, path, "TRL")


def read_verl(path: Path) -> tuple[History, list[str]]:
    """The history in a file of verl's file logger.

    Raises:
        UsageError: its lines are not verl's.
    """
    records = list(read_lines(path))
    if not records or not all(
        isinstance(r, dict) and isinstance(r.get("data"), dict) and _is_number(r.get("step"))
        for r in records
    ):
        raise UsageError(
            f"{path} is no file of verl's metrics: its lines are not of the form "
            '{"step": .., "data": {..}}'
        )
    flat = [{**r["data"], "step": r["step"]} for r in records]
    history, notes = _history(flat, VERL_KEYS, path, "verl")
    if not path.read_bytes().endswith(b"\n"):
        notes.append(f"{path.name} ends in the middle of a line; read up to the record before")
    return history, notes


def _history(
    entries: Sequence[Mapping[str, Any]], keys: Mapping[str, str], path: Path, library: str
) -> tuple[History, list[str]]:
    steps = []
    for entry in entries:
        known = {ours: entry[key] for key, ours in keys.items() if _is_number(entry.get(key))}
        if known:
            steps.append({"kind": "train", "step": entry["step"], **known})
    if not steps:
        raise DataError(
            f"{path} holds none of the metrics that are read of {library}: {', '.join(keys)}"
        )
    read = sorted({key for entry in entries for key in keys if _is_number(entry.get(key))})
    return History(steps=steps), [f"read of {library}: {', '.join(read)}"]


def _is_number(value: Any) -> bool:
    """Whether it can be reckoned with: NaN, which these libraries write, is a value not known."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
