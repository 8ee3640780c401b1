"""The verb `explain`: why did this run do what it did?"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.config import Config, load_config
from tutelage.diagnose.foreign import read_trl, read_verl, trl_state
from tutelage.errors import TutelageError, UsageError
from tutelage.paths import usable_path
from tutelage.runs import records as kept
from tutelage.runs.directory import open_run, where_runs_are
from tutelage.signals.causes import Cause, teacher_is_no_better
from tutelage.signals.history import WINDOW, History
from tutelage.signals.ranking import rank, unread

STATIC_NOTES = (
    "stop_ids_differ",
    "templates_differ",
    "precisions_differ",
    "vocabularies_differ",
    "tokens_differ",
    "head_too_short",
)


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What was found about a run."""

    run: Path
    """What was read."""
    history: History
    """What it recorded."""
    causes: tuple[Cause, ...]
    """Likeliest first; empty where nothing wrong was found."""
    notes: tuple[str, ...]
    """What could not be read or judged."""

    @property
    def story(self) -> str:
        """What happened and why, in a paragraph."""
        return story(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        h = self.history
        outcome: dict[str, Any] = {"outcome": h.outcome, "steps": len(h.steps)}
        for key in ("accuracy", "kl/reverse", "rollout/length"):
            values = {"start": h.at_start(key), "end": h.at_end(key)}
            outcome |= {f"{key}/{when}": v for when, v in values.items() if v is not None}
        return {
            "run": str(self.run),
            "story": self.story,
            **outcome,
            "causes": [cause.to_dict() for cause in self.causes],
            "notes": list(self.notes),
        }


def explain(run: str | Path) -> Explanation:
    """Say why a run did what it did: causes, likeliest first, with evidence and a setting.

    Args:
        run: a run directory; or TRL's output directory or trainer_state.json; or the metrics of
            verl's file logger.

    Raises:
        UsageError: nothing that can be explained is there.
        DataError: a record in the middle is damaged.
    """
    path = usable_path(run, "run")
    if not path.exists():
        raise UsageError(f"{path} does not exist; {where_runs_are(path)}")
    if (path / "config.yaml").is_file():
        history, notes = read_history(path)
    elif (state := trl_state(path)) is not None:
        history, notes = read_trl(state)
    elif path.is_file() and path.suffix == ".jsonl":
        history, notes = read_verl(path)
    else:
        raise UsageError(
            f"{path} is no run: it has neither config.yaml and metrics.jsonl (ours) nor "
            "trainer_state.json (TRL), and is no .jsonl file of verl's metrics"
        )
    if not history.steps:
        notes = [*notes, "no step was recorded, so only what was known before training is judged"]
    if silent := unread(history):
        notes = [*notes, f"not judged, for want of what they read: {', '.join(silent)}"]
    return Explanation(run=path, history=history, causes=tuple(rank(history)), notes=tuple(notes))


def read_history(path: Path) -> tuple[History, list[str]]:
    """What a run directory of ours holds, and what of it could not be read."""
    run = open_run(path)
    notes: list[str] = []
    config = load_config(run.path / "config.yaml")
    records = _records(run.metrics, kept.metric_records, notes)
    if not records:
        raise UsageError(f"{run.metrics} holds no record yet; let the run take a step")
    evaluations = [record for record in records if record.get("kind") == "eval"]
    events = _records(run.events, kept.event_records, notes)
    noted = {
        event["event"]: str(event.get("text", "")).split("; ")[0]
        for event in events
        if event.get("event") in STATIC_NOTES
    }
    noted |= static_facts(config) | _other_model(run.path / "servers.json", config)
    notes += _verdict(run.path / "check.json")
    shown = sorted({record["step"] for record in evaluations})
    first, last = (shown[0], shown[-1]) if shown else (0, 0)

    def rollouts(step: int) -> list[dict[str, Any]]:
        return _records(run.path / f"rollouts/step-{step}.jsonl", kept.rollout_records, notes)

    history = History(
        config=config,
        steps=[record for record in records if record.get("kind") == "train"],
        evaluations=evaluations,
        positions=_records(
            run.path / "positions.jsonl", lambda path: kept.position_records(path, WINDOW), notes
        ),
        rollouts=rollouts(first),
        last_rollouts=rollouts(last),
        noted=noted,
    )
    return history, notes


def _other_model(path: Path, config: Config) -> dict[str, str]:
    """What the teacher's server says it serves, where it calls it otherwise than the settings."""
    if not path.is_file():
        return {}
    told = (kept.server_records(path).get("teacher") or {}).get("root")
    if not told or Path(told).name == Path(config.teacher_model.path).name:
        return {}
    return {
        "server_root": f"its server says that it serves {told}, not {config.teacher_model.path}"
    }


def _verdict(path: Path) -> list[str]:
    """What `check` said before training."""
    if not path.is_file():
        return []
    found = kept.check_record(path)
    reasons = [reason["text"] for reason in found.get("reasons", ())][:1]
    return [": ".join([f"before training, check said {found['verdict']}", *reasons])]


def static_facts(config: Config) -> dict[str, str]:
    """Where the two models disagree, as far as their folders are still there; no weights."""
    if not all(
        usable_path(side.path, "model").is_dir() for side in (config.student, config.teacher_model)
    ):
        return {}
    from tutelage.data.render import as_rendered
    from tutelage.models.facts import disagreements, facts_of  # transformers takes seconds

    try:
        student = as_rendered(facts_of(config.student, "student"), config.student)
        teacher = facts_of(config.teacher_model, "teacher")
        found = {s.name: s.evidence for s in disagreements(student, teacher)}
        if config.teacher_model.own_prompt:
            found |= _rendered(config, student.tokenizer, teacher.tokenizer)
    except TutelageError:  # the folders have changed since
        return {}
    return found


def _rendered(config: Config, student: Any, teacher: Any) -> dict[str, str]:
    from tutelage.data.prompts import load_prompts
    from tutelage.data.render import render_one

    chat = config.data.use_chat_template
    prompt = load_prompts(config.data.prompts)[0]
    sides = [
        tokenizer.decode(list(render_one(prompt, tokenizer, settings, chat, role)))
        for tokenizer, settings, role in (
            (student, config.student, "student"),
            (teacher, config.teacher_model, "teacher"),
        )
    ]
    if sides[0] == sides[1]:
        return {}
    return {"rendered": f"the student reads {sides[0]!r}, the teacher {sides[1]!r}"}


def story(explanation: Explanation) -> str:
    """The paragraph that stands above the causes."""
    h = explanation.history
    parts = [_what_happened(h)]
    sure = [cause for cause in explanation.causes if cause.confidence == "high"]
    likely = [cause for cause in explanation.causes if cause.confidence == "medium"]
    if sure:
        first = sure[0]
        parts.append(f"The cause: {_lower(first.text)} ({first.evidence[0]}).")
        parts.append(f"To mend it: {first.advice}.")
        others = [c.name for c in sure[1:]]
        if others:
            parts.append(f"Also plain in this run: {', '.join(others)}.")
    elif likely:
        first = likely[0]
        parts.append(
            f"Nothing is proven; the likeliest cause: {_lower(first.text)} ({first.evidence[0]})."
        )
        parts.append(f"To try: {first.advice}.")
    else:
        unexplained = h.outcome in ("flat", "worse")
        found = "No cause that is known here fits" if unexplained else "Nothing wrong was found"
        names = ", ".join(cause.name for cause in explanation.causes)
        parts.append(f"{found}; worth a look: {names}." if names else f"{found}.")
        parts += _unexplained(h) if unexplained else []
    return " ".join(parts)


def _unexplained(h: History) -> list[str]:
    """What to try where the student is no better and no rule says why."""
    before, after = h.at_start("kl/reverse"), h.at_end("kl/reverse")
    if before is None or after is None:
        return []
    if after > before:
        return [
            "The reverse KL rose, so it moves away from its teacher: a lower optimizer.lr is the "
            "first thing to try."
        ]
    if teacher_is_no_better(h):
        return ["It comes nearer to a teacher that is not plainly better: ask tutelage check."]
    return [
        "The reverse KL fell, so it is on its way: more steps or a higher optimizer.lr is the "
        "first thing to try, and more held-out questions tell smaller gains."
    ]


def _what_happened(h: History) -> str:
    steps = f"{len(h.steps)} steps"
    words = {
        "improved": "the student became better",
        "flat": "the student did not plainly become better",
        "worse": "the student became worse",
        "unknown": "what became of the student was not recorded",
    }
    told = f"In {steps} {words[h.outcome]}"
    numbers = []
    for key, label, form, unit in (
        ("accuracy", "accuracy", ".3g", ""),
        ("kl/reverse", "reverse KL", ".3g", ""),
        ("rollout/length", "length", ".1f", " tokens"),
    ):
        before, after = h.at_start(key), h.at_end(key)
        if before is not None and after is not None:
            numbers.append(f"{label} {before:{form}} -> {after:{form}}{unit}")
    return told + (f": {', '.join(numbers)}." if numbers else ".")


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _records(
    path: Path, read: Callable[[Path], list[dict[str, Any]]], notes: list[str]
) -> list[dict[str, Any]]:
    """Whole records of a file; an unfinished last line is left out, and said so."""
    if not path.is_file():
        if path.parent.name != "rollouts":
            notes.append(f"{path.name} is not there")
        return []
    try:
        with path.open("rb") as stream:
            length = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, length - 1))
            end = stream.read()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if end not in (b"", b"\n"):
        notes.append(f"{path.name} ends in the middle of a line; read up to the record before")
    return read(path)
