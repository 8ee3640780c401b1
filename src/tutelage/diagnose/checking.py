"""The verb `check`: is this pair worth training?"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from tutelage.alignment.bench import Bench, blocks, conclude, grow, plant, spread
from tutelage.alignment.estimates import Alignment, plain
from tutelage.alignment.job import candidates_of, fit_together, move_of
from tutelage.alignment.spines import Candidate
from tutelage.alignment.tree import Tree
from tutelage.config import Config, Full, PromptSet, ReverseKL
from tutelage.data.prompts import load_prompts, split_held_out
from tutelage.data.render import render
from tutelage.data.verify import Verify, choose_verifier, judge
from tutelage.diagnose.continuation import choose_answers, compare_continuations, right_shares
from tutelage.diagnose.looks import (
    LOOK_STEP,
    Look,
    accuracy_of,
    agree,
    agreement_of,
    alignment_of,
    capability_of,
    evidence_of,
    grouped,
    kinds_of,
    novelty_of,
    positions_of,
    sample_teacher,
    soundness_of,
    views_of,
)
from tutelage.diagnose.summary import next_command
from tutelage.diagnose.verdict import Evidence, Verdict, judge_pair
from tutelage.errors import DataError, UsageError
from tutelage.evaluation import Evaluation
from tutelage.gradient import Models
from tutelage.metrics import TokenTable, overlap_k
from tutelage.models.base import Teacher
from tutelage.models.facts import Facts, disagreements, facts_of
from tutelage.models.local import LocalModel, load_model
from tutelage.models.served.teacher import ServedTeacher
from tutelage.runs.directory import full_disk_told, replace_text, to_json
from tutelage.signals import Signal
from tutelage.types import RenderedPrompt, Rollout, SamplingParams

Observer = Callable[[dict[str, Any]], None]
OWN = "run"
"""The name of the run's own questions among the prompt sets."""
BASELINE = "baseline"
"""The name of `check.baseline` among the teachers."""


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
    """The student's own answers by prompt set: accuracy, length, entropy."""
    differences: Mapping[str, Mapping[str, Any]]
    """Paired differences of the teachers' advantages by prompt set."""
    notes: tuple[str, ...]
    """What could not be measured, and why."""
    seconds: float
    """Wall time."""

    @property
    def verdict(self) -> Verdict:
        """The verdict on the run's own teacher and questions."""
        return self.looks[0].verdict

    @property
    def paths(self) -> dict[str, str]:
        """Folders of the teachers that a run could name in place of its own."""
        given = {"teacher": self.config.teacher, **self.config.align.teachers}
        return {name: t.path for name, t in given.items() if not t.own_prompt}

    @property
    def ranking(self) -> tuple[Look, ...]:
        """Most promising first: by verdict, then by the advantage of its choices, then by gap."""
        order = ("go", "unknown", "change-prompts", "cold-start", "different-teacher")

        def key(look: Look) -> tuple[int, float, float]:
            advantage = (look.alignment or {}).get("advantage", {}).get("value", float("-inf"))
            gap = (look.capability or {}).get("accuracy", {}).get("gap", float("-inf"))
            return (order.index(look.verdict.word), -advantage, -gap)

        return tuple(sorted(self.looks, key=key))

    def next_command(self, arguments: str = "-c CONFIG.yaml") -> str:
        """The one command to run next; `arguments` name the settings that were checked."""
        return next_command(self, arguments)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            **self.verdict.to_dict(),
            "next": self.next_command(),
            "ranking": [
                {"teacher": k.teacher, "prompt_set": k.prompt_set, "verdict": k.verdict.word}
                for k in self.ranking
            ],
            "looks": [look.to_dict() for look in self.looks],
            "student": self.student,
            "differences": self.differences,
            "sides": self.sides,
            "notes": list(self.notes),
            "seconds": round(self.seconds, 1),
        }


def check(
    config: Config,
    *,
    output: str | Path | None = None,
    observer: Observer = lambda record: None,
) -> Check:
    """Say before training whether a pair will work, with evidence and intervals.

    `output` gets everything as JSON. The further teachers and contexts of `config.align` and the
    prompt sets of `config.check` are compared in the same call.

    Raises:
        TutelageError: a setting, a model or data that cannot be read; a pair that can be read but
            not combined is a verdict.
    """
    started = time.monotonic()
    sets = {OWN: config} | {
        name: _reworded(config, change) for name, change in config.check.prompt_sets.items()
    }
    teachers = {"teacher": config.teacher, **config.align.teachers}
    if config.check.baseline is not None:
        teachers[BASELINE] = config.check.baseline
    student = facts_of(config.student, "student")
    sides = {name: facts_of(settings, name) for name, settings in teachers.items()}
    asked = {name: _ask(of_set, student) for name, of_set in sets.items()}
    longest = max(len(p.ids) for questions, _ in asked.values() for p in questions)
    signals = {
        name: [
            *disagreements(student, side),
            *_contexts((student, side), longest + config.rollout.max_new_tokens),
        ]
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
    measured: list[Measurements] = []
    if "teacher" not in refused:
        others = {n: t for n, t in teachers.items() if n not in (*refused, "teacher")}
        compared = config.model_copy(
            update={"align": config.align.model_copy(update={"teachers": others})}
        )
        loaded = load_model(config.student, "student")
        candidates = candidates_of(compared, loaded)
        fit_together(config, loaded, candidates)
        k = overlap_k(config.run.metrics_k, loaded.vocabulary)
        for candidate in candidates:
            if isinstance(candidate.model, ServedTeacher):
                candidate.model.prepare_for(config.objective, k)
        for name, (questions, verify) in asked.items():
            setting = Setting(
                config=sets[name],
                name=name,
                student=loaded,
                candidates=candidates,
                questions=questions,
                verify=verify,
                signals=signals,
            )
            measured.append(measure_all(setting, observer))
    result = Check(
        config=config,
        looks=(*(look for m in measured for look in m.looks), *looks),
        sides={"student": student.to_dict()} | {n: f.to_dict() for n, f in sides.items()},
        student={m.name: m.student for m in measured},
        differences={m.name: m.differences for m in measured if m.differences},
        notes=tuple(note for m in measured for note in m.notes),
        seconds=time.monotonic() - started,
    )
    if output is not None:
        with full_disk_told(output):
            Path(output).parent.mkdir(parents=True, exist_ok=True)
            replace_text(Path(output), to_json(result.to_dict()))
    return result


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One prompt set, and who is compared on it."""

    config: Config
    """The run's settings with this set's prompts."""
    name: str
    """Of the prompt set."""
    student: LocalModel
    """Who would learn."""
    candidates: Sequence[Candidate]
    """Who might teach."""
    questions: Sequence[RenderedPrompt]
    """What is asked."""
    verify: Verify | None
    """Judges an answer; None where nobody does."""
    signals: Mapping[str, Sequence[Signal]]
    """What was noticed of each teacher without weights."""

    @property
    def params(self) -> SamplingParams:
        """How completions are drawn, as in training."""
        rollout = self.config.rollout
        return SamplingParams(
            max_new_tokens=rollout.max_new_tokens,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
        )


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """What one prompt set gave."""

    name: str
    """The prompt set."""
    looks: Sequence[Look]
    """One for each teacher."""
    student: Mapping[str, float]
    """The student's accuracy and the shape of its answers."""
    differences: Mapping[str, Any]
    """Paired differences of advantages."""
    notes: Sequence[str]
    """What could not be measured."""


def measure_all(setting: Setting, observer: Observer) -> Measurements:
    """Draw the student once, and measure every teacher on what it drew."""
    config, student = setting.config, setting.student
    samples, seed = config.check.samples, config.run.seed
    drawn = student.sample(
        setting.questions, setting.params, group_size=samples, seed=seed, step=LOOK_STEP
    )
    if setting.verify is not None:
        drawn = judge(drawn, setting.verify)
    answers = grouped(drawn, samples, was_judged=setting.verify is not None)
    observer({"kind": "student", "prompt_set": setting.name, **_about_student(answers)})
    found, notes = _align(setting, drawn)
    continued = choose_answers(drawn, config.check.continued) if setting.verify else []
    own = _continue(setting, student, continued, as_teacher=False)
    looks: list[Look] = []
    for candidate in setting.candidates:
        looks.append(_look(setting, candidate, answers, found, continued, own))
        verdict = looks[-1].verdict
        observer(
            {
                "kind": "look",
                "teacher": candidate.name,
                "prompt_set": setting.name,
                "verdict": verdict.word,
                "reason": verdict.reasons[0].text,
            }
        )
    differences = {} if found is None else found.to_dict()["differences"]
    return Measurements(
        name=setting.name,
        looks=looks,
        student=_about_student(answers),
        differences={pair: plain({"advantage": d["advantage"]}) for pair, d in differences.items()},
        notes=notes,
    )


def _look(
    setting: Setting,
    candidate: Candidate,
    answers: Evaluation,
    found: Alignment | None,
    continued: Sequence[Rollout],
    own: np.ndarray,
) -> Look:
    config, student, teacher = setting.config, setting.student, candidate.model
    samples, seed = config.check.samples, config.run.seed
    models = Models(student=student, teacher=teacher, references={})
    k = overlap_k(config.run.metrics_k, student.vocabulary)
    seen = views_of(candidate, answers.rollouts, config.data.use_chat_template)
    table, rows = agree(models, seen, k)
    agreement = agreement_of(seen, table, rows)
    theirs = sample_teacher(
        teacher, seen, setting.verify, setting.params, samples=samples, seed=seed
    )
    capability = capability_of(answers, theirs, samples)
    if novelty := novelty_of(models, theirs, k):
        capability["right_answers"] = novelty
    by_name = {(r.prompt.id, r.index): place for place, r in enumerate(continued)}
    views = [r for r in seen if (r.prompt.id, r.index) in by_name]
    mine = own[[by_name[r.prompt.id, r.index] for r in views]] if views else own[:0]
    rescue = compare_continuations(
        views,
        config.check.depths,
        mine,
        _continue(setting, teacher, views, as_teacher=True),
    )
    signals = setting.signals.get(candidate.name, ())
    outcomes = {r.reward for r in answers.rollouts if r.reward is not None}
    evidence = evidence_of(
        candidate.name,
        agreement,
        capability,
        rescue,
        found,
        accuracy_of(answers),
        has_outcomes=len(outcomes) > 1,
    )
    return Look(
        teacher=candidate.name,
        prompt_set=setting.name,
        verdict=judge_pair(evidence, signals),
        signals=tuple(signals),
        agreement=agreement,
        positions=positions_of(table, rows, config.rollout.max_new_tokens),
        kinds=kinds_of(student, seen, table),
        capability=capability or None,
        rescue=tuple(rescue),
        alignment=alignment_of(found, candidate.name),
        soundness=soundness_of(models, seen, table, rows, k),
        baseline=_against_baseline(setting, candidate, answers, table, k),
    )


def _align(setting: Setting, drawn: Sequence[Rollout]) -> tuple[Alignment | None, list[str]]:
    """A small alignment on the natural rollouts at hand, or why there is none."""
    config, where = setting.config, f"{setting.name}: no alignment: "
    if setting.verify is None:
        return None, [where + "answers are not verified"]
    if not config.check.budget:
        return None, [where + "check.budget is 0"]
    if config.rollout.top_p < 1 or config.rollout.top_k:
        return None, [where + "rollout.top_p and rollout.top_k change what the student draws"]
    notes: list[str] = []
    try:
        move = move_of("objective", config.objective, setting.candidates)
    except UsageError:
        move = move_of("objective", Full(divergence=ReverseKL()), setting.candidates)
        notes.append(
            f"{setting.name}: the alignment takes the full reverse KL in place of "
            f"{config.objective.type}, which has no move at a single state"
        )
    bench = Bench(
        student=setting.student,
        sampler=setting.student,
        candidates=setting.candidates,
        objectives={"objective": move},
        prompts=setting.questions,
        verify=setting.verify,
        settings=config.align.model_copy(
            update={"budget": config.check.budget, "samples": config.check.samples}
        ),
        max_new_tokens=config.rollout.max_new_tokens,
        temperature=config.rollout.temperature,
        use_chat_template=config.data.use_chat_template,
        seed=config.run.seed,
    )
    try:
        tree = _plant_within_budget(bench, drawn)
    except (DataError, UsageError) as error:  # no outcome to learn from, or too small a budget
        return None, [*notes, where + str(error)]
    records = [
        {"unit": branch.name, **record}
        for part in blocks(tree, setting.student.batch_size)
        for branch, record in grow(bench, tree, part)
    ]
    return conclude(bench, tree, records), notes


def _plant_within_budget(bench: Bench, drawn: Sequence[Rollout]) -> Tree:
    """A tree with as many spines a question as the budget allows, at least one."""
    spines = min(bench.settings.spines, bench.settings.samples)
    while True:
        settings = bench.settings.model_copy(update={"spines": spines})
        try:
            return plant(replace(bench, settings=settings), drawn)
        except UsageError:  # the budget is below the floor of so many
            if spines == 1:
                raise
            spines //= 2


def _continue(
    setting: Setting, model: Teacher, answers: Sequence[Rollout], *, as_teacher: bool
) -> np.ndarray:
    """Share of right continuations [answers, depths]."""
    config = setting.config
    if not answers or setting.verify is None:
        return np.zeros((0, len(config.check.depths)))
    return right_shares(
        model,
        answers,
        config.check.depths,
        setting.verify,
        setting.params,
        samples=config.check.continuations,
        seed=config.run.seed,
        as_teacher=as_teacher,
    )


def _against_baseline(
    setting: Setting, candidate: Candidate, answers: Evaluation, table: TokenTable, k: int
) -> dict[str, float] | None:
    """KL from the teacher to its baseline where the student goes, beside the student's own."""
    found = next((c for c in setting.candidates if c.name == BASELINE), None)
    if found is None or candidate.name == BASELINE or not isinstance(found.model, LocalModel):
        return None  # from a server's list there is no divergence between two teachers
    between = Models(student=found.model, teacher=candidate.model, references={})
    seen = views_of(candidate, answers.rollouts, setting.config.data.use_chat_template)
    apart = agree(between, seen, k)[0]
    return {
        "kl_teacher_to_baseline": apart["kl/forward"].double().mean().item(),
        "kl_student_to_teacher": table["kl/reverse"].double().mean().item(),
    }


def _about_student(answers: Evaluation) -> dict[str, float]:
    rollouts = answers.rollouts
    told = {
        "length": fmean(len(r.completion_ids) for r in rollouts),
        "truncated": fmean(r.finish_reason == "length" for r in rollouts),
    }
    if (accuracy := accuracy_of(answers)) is not None:
        told |= dict(zip(("accuracy", "low", "high"), accuracy, strict=True))
    if answers.was_judged and (unknown := sum(r.reward is None for r in rollouts)):
        told["unknown"] = unknown
    return told


def _ask(config: Config, student: Facts) -> tuple[list[RenderedPrompt], Verify | None]:
    """The questions of a prompt set, spread over the held-out ones, and who judges them.

    Raises:
        DataError: prompts that cannot be read, or are all too long.
    """
    data = config.data
    source = data.eval_prompts or data.prompts
    prompts = load_prompts(source)
    if data.eval_prompts is None and 0 < data.held_out < len(prompts):
        prompts = split_held_out(prompts, data.held_out)[1]
    verify = choose_verifier(data, prompts)
    rendered, dropped = render(
        prompts, student.tokenizer, config.student, data.max_prompt_tokens, data.use_chat_template
    )
    if not rendered:
        raise DataError(f"{source}: all {dropped} prompts exceed data.max_prompt_tokens")
    return spread(rendered, config.check.questions), verify


def _reworded(config: Config, change: PromptSet) -> Config:
    """The run with another prompt set's questions or words, on both sides."""
    words = change.model_dump(include={"user_prompt", "system_prompt"}, exclude_none=True)
    teacher = words if config.teacher.own_prompt else {}
    return config.model_copy(
        update={
            "student": config.student.model_copy(update=words),
            "teacher": config.teacher.model_copy(update=teacher),
            "data": config.data.model_copy(
                update={} if change.prompts is None else {"eval_prompts": change.prompts}
            ),
        }
    )


def _contexts(sides: Sequence[Facts], tokens: int) -> list[Signal]:
    short = [side for side in sides if side.context is not None and side.context < tokens]
    return [
        Signal(
            name="context_too_short",
            severity="stop",
            evidence=f"the {side.role} reads {side.context} tokens, and the longest prompt with "
            f"rollout.max_new_tokens needs {tokens}",
            advice="lower rollout.max_new_tokens or data.max_prompt_tokens",
        )
        for side in short
    ]
