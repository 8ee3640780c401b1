"""The verb `check`: is this pair worth training?"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from tutelage.alignment.estimates import plain
from tutelage.alignment.job import candidates_of, fit_together
from tutelage.alignment.spines import Candidate
from tutelage.config import Config
from tutelage.data.render import as_rendered
from tutelage.data.verify import Verify
from tutelage.diagnose.commands import DEFAULT, next_command
from tutelage.diagnose.findings import accuracy_difference
from tutelage.diagnose.looks import Look
from tutelage.diagnose.measuring import Measurements, Observer, measure_all
from tutelage.diagnose.prediction import features_of, predict
from tutelage.diagnose.setting import Setting
from tutelage.diagnose.static import ask, reworded, room, signals_of, teachers_of, view_in
from tutelage.diagnose.verdict import Evidence, Verdict, judge_pair
from tutelage.metrics import overlap_k
from tutelage.models.base import Sampler
from tutelage.models.facts import facts_of
from tutelage.models.loading import load_model
from tutelage.models.local import LocalModel
from tutelage.models.served.teacher import ServedTeacher
from tutelage.runs.directory import full_disk_told, replace_text, to_json
from tutelage.scale.engines import workers_of
from tutelage.scale.sampling import SharedSampler
from tutelage.scale.units import MapUnits
from tutelage.session import require_objective
from tutelage.signals import Signal
from tutelage.types import RenderedPrompt

OWN = "run"
"""The name of the run's own questions among the prompt sets."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Everything one check found."""

    config: Config
    """The settings that were checked."""
    looks: tuple[Look, ...]
    """One for each teacher on each prompt set; the run's own first."""
    sides: Mapping[str, Mapping[str, Any]]
    """What models say of themselves without their weights, by role."""
    student: Mapping[str, Mapping[str, float]]
    """The student's own answers by prompt set: accuracy, length, entropy, repetition."""
    differences: Mapping[str, Mapping[str, Any]]
    """Paired differences of the teachers' advantages and accuracies by prompt set."""
    between_sets: Mapping[str, Mapping[str, Any]]
    """Differences of accuracy between prompt sets, by who answered."""
    notes: tuple[str, ...]
    """What could not be measured, and why."""
    questions: Mapping[str, int]
    """How many were asked, by prompt set."""
    has_answers: bool
    """Whether every one of the run's own has a reference answer."""
    room: int | None
    """Tokens that every side still reads after the longest prompt; None: nobody says."""
    seconds: float
    """Wall time."""

    @property
    def verdict(self) -> Verdict:
        """The verdict on the run's own teacher and questions."""
        return self.looks[0].verdict

    @property
    def ranking(self) -> tuple[Look, ...]:
        """Most promising first: by verdict, then by the advantage of its choices, then by gap."""
        order = ("go", "unknown", "change-prompts", "cold-start", "different-teacher")

        def key(look: Look) -> tuple[int, float, float]:
            advantage = (look.alignment or {}).get("advantage", {}).get("value", float("-inf"))
            gap = (look.capability or {}).get("accuracy", {}).get("gap", float("-inf"))
            return (order.index(look.verdict.word), -advantage, -gap)

        return tuple(sorted(self.looks, key=key))

    def next_command(self, arguments: Sequence[str] = DEFAULT) -> str:
        """The one command to run next; `arguments` name the settings that were checked."""
        return next_command(self, arguments)

    def to_dict(self, arguments: Sequence[str] = DEFAULT) -> dict[str, Any]:
        """Plain values for JSON; `arguments` as in `next_command`."""
        return {
            **self.verdict.to_dict(),
            "next": self.next_command(arguments),
            "ranking": [
                {"teacher": k.teacher, "prompt_set": k.prompt_set, "verdict": k.verdict.word}
                for k in self.ranking
            ],
            "looks": [look.to_dict() for look in self.looks],
            "student": self.student,
            "differences": self.differences,
            "between_sets": self.between_sets,
            "questions": self.questions,
            "sides": self.sides,
            "notes": list(self.notes),
            "seconds": round(self.seconds, 1),
        }


def check(
    config: Config,
    *,
    output: str | Path | None = None,
    observer: Observer = lambda record: None,
    arguments: Sequence[str] = DEFAULT,
) -> Check:
    """Say before training whether a pair will work, with evidence and intervals.

    `output` gets everything as JSON, with the next command for the words that named the settings
    (`arguments`). The further teachers and contexts of `config.align` and the prompt sets of
    `config.check` are compared in the same call.

    Raises:
        TutelageError: a setting, a model or data that cannot be read; a pair that can be read but
            not combined is a verdict.
    """
    started = time.monotonic()
    sets = {OWN: config} | {
        name: reworded(config, change) for name, change in config.check.prompt_sets.items()
    }
    teachers = teachers_of(config)
    student = as_rendered(facts_of(config.student, "student"), config.student)
    sides = {name: facts_of(settings, name) for name, settings in teachers.items()}
    asked = {name: ask(of_set, student) for name, of_set in sets.items()}
    longest = max(len(p.ids) for questions, _ in asked.values() for p in questions)
    signals = {
        name: signals_of(config, student, side, asked[OWN][0], longest)
        for name, side in sides.items()
    }
    observer({"kind": "static", "signals": signals})
    refused = [name for name in teachers if any(s.severity == "stop" for s in signals[name])]
    looks = [
        Look(
            teacher=name,
            prompt_set=OWN,
            signals=tuple(signals[name]),
            verdict=judge_pair(Evidence(), signals[name]),
        )
        for name in refused
    ]
    fits = (own := room((student,), longest)) is None or own >= config.rollout.max_new_tokens
    measured: list[Measurements] = []
    if fits and (len(refused) < len(teachers) or config.align.contexts):
        measured = _measure(config, sets, asked, signals, refused, observer)
    looks += [look for m in measured for look in m.looks]
    looks = [replace(look, prediction=predict(features_of(look.to_dict()))) for look in looks]
    looks.sort(key=lambda look: (look.teacher, look.prompt_set) != ("teacher", OWN))  # stable
    result = Check(
        config=config,
        looks=tuple(looks),
        sides={"student": student.to_dict()} | {n: f.to_dict() for n, f in sides.items()},
        student={m.name: m.student for m in measured},
        differences={m.name: m.differences for m in measured if m.differences},
        between_sets=_between(measured),
        notes=tuple(note for m in measured for note in m.notes),
        questions={name: len(questions) for name, (questions, _) in asked.items()},
        has_answers=all(p.prompt.answer is not None for p in asked[OWN][0]),
        room=room((student, *sides.values()), longest),
        seconds=time.monotonic() - started,
    )
    if output is not None:
        with full_disk_told(output):
            Path(output).parent.mkdir(parents=True, exist_ok=True)
            replace_text(Path(output), to_json(result.to_dict(arguments)))
    return result


def _measure(
    config: Config,
    sets: Mapping[str, Config],
    asked: Mapping[str, tuple[Sequence[RenderedPrompt], Verify | None]],
    signals: Mapping[str, Sequence[Signal]],
    refused: Sequence[str],
    observer: Observer,
) -> list[Measurements]:
    """Load whoever can be combined with the student, and measure them on every prompt set."""
    others = {n: t for n, t in teachers_of(config).items() if n not in (*refused, "teacher")}
    compared = config.model_copy(
        update={"align": config.align.model_copy(update={"teachers": others})}
    )
    student = load_model(config.student, "student")
    require_objective(config, student)
    candidates = candidates_of(compared, student, without=refused)
    fit_together(config, student, candidates)
    k = overlap_k(config.run.metrics_k, student.vocabulary)
    for candidate in candidates:
        if isinstance(candidate.model, ServedTeacher):
            candidate.model.prepare_for(config.objective, k)

    def tell(text: str) -> None:
        observer({"kind": "note", "text": text})

    with workers_of(config.engine, "student", "teacher", tell=tell) as map_units:
        samplers = _samplers(compared, student, candidates, map_units)
        return [
            measure_all(
                Setting(
                    config=sets[name],
                    name=name,
                    student=student,
                    candidates=[replace(c, view=view_in(sets[name], c)) for c in candidates],
                    questions=questions,
                    verify=verify,
                    signals=signals,
                    map_units=map_units,
                    samplers=samplers,
                ),
                observer,
            )
            for name, (questions, verify) in asked.items()
        ]


def _samplers(
    config: Config, student: LocalModel, candidates: Sequence[Candidate], map_units: MapUnits
) -> dict[int, Sampler]:
    """Who draws in place of each model that is loaded here."""
    places = {"teacher": config.teacher_model, **config.align.teachers}
    found: dict[int, Sampler] = {
        id(student): SharedSampler(student, config.student, "student", map_units)
    }
    for candidate in candidates:
        model = candidate.model
        if isinstance(model, LocalModel) and id(model) not in found:
            found[id(model)] = SharedSampler(
                model, places[candidate.name], candidate.name, map_units
            )
    return found


def _between(measured: Sequence[Measurements]) -> dict[str, Any]:
    """Accuracy on every two prompt sets, by who answered; paired where the questions are one."""
    told: dict[str, Any] = {}
    for first, second in combinations(measured, 2):
        found = {
            who: accuracy_difference(first.answers[who], second.answers[who])
            for who in first.answers
            if who in second.answers
        }
        if known := {who: value for who, value in found.items() if value is not None}:
            told[f"{first.name} - {second.name}"] = plain(known)
    return told
