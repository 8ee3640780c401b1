"""The recipe `rescue cold-start`: the teacher answers, the student imitates.

check -> answers of the teacher -> filter -> imitation -> a student -> check -> (train)
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tutelage.config import Config, DataConfig, LocalEngine, dump_config
from tutelage.data.verify import Verify, choose_verifier, make_verifier, verifier_settings
from tutelage.diagnose.checking import check
from tutelage.errors import DataError, UsageError
from tutelage.models.checkpoints import pin_models
from tutelage.models.compatibility import require_context
from tutelage.models.facts import Facts, disagreements, facts_of
from tutelage.ops.intervals import difference_interval
from tutelage.publishing import STUDENT, card, changed_settings, source_name, write_student
from tutelage.rescue.cold_start_rollouts import AnswerBench, Tally, fill_slots
from tutelage.rescue.cold_start_summary import Added
from tutelage.rescue.sft import Imitated, imitate
from tutelage.runs.directory import (
    Run,
    create_run,
    environment,
    full_disk_told,
    read_json,
    read_lines,
    replace_text,
    reserve_run,
    to_json,
)
from tutelage.runs.interrupts import Interrupts
from tutelage.runs.ledger import Ledger
from tutelage.runs.lock import locked
from tutelage.runs.resuming import reopen
from tutelage.scale.engines import workers_of
from tutelage.session import digest, load_teacher, split_prompts
from tutelage.trainer import Observer
from tutelage.training import TrainResult, train
from tutelage.types import RenderedPrompt, Rollout, SamplingParams
from tutelage.views import render_both_sides

_SHOW_EVERY_S = 2.0


@dataclass(frozen=True, kw_only=True)
class ColdStart:
    """What a cold start came to."""

    student: Path
    """The student that `train` and `check` load."""
    answers: Mapping[str, Any]
    """Counts of slots, tries and rejections."""
    imitation: Mapping[str, Any]
    """Steps and validation losses."""
    before: Mapping[str, Any] | None
    """What `check` found of the student as it was; None where it was not run."""
    after: Mapping[str, Any] | None
    """What it found of the new one."""
    seconds: Mapping[str, float]
    """Wall time of each phase of this sitting."""
    trained: TrainResult | None = None
    """The distillation that followed."""
    added: Added | None = None
    """What that added to the cold start; None without one, or where answers are not verified."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        told: dict[str, Any] = {
            "student": str(self.student),
            "answers": self.answers,
            "imitation": self.imitation,
            "before": self.before,
            "after": self.after,
            "seconds": self.seconds,
        }
        if self.trained is not None:
            told["trained"] = {
                "run": str(self.trained.run),
                "outcome": self.trained.outcome,
                "student": str(self.trained.student),
            }
        if self.added is not None:
            told["added"] = self.added.to_dict()
        return {key: value for key, value in told.items() if value is not None}


def cold_start(
    config: Config,
    output: str | Path,
    *,
    then: Config | None = None,
    resume: bool = False,
    overwrite: bool = False,
    observer: Observer = lambda record: None,
) -> ColdStart:
    """Let the student imitate the teacher's answers, and say whether distillation helps now.

    The directory `output` keeps every try (rollouts.jsonl), losses (metrics.jsonl), checkpoints,
    both checks (before.json, after.json), counts (summary.json) and the student. `then` are the
    settings of a `train` that goes on from it with the same teacher.

    Raises:
        TutelageError: whatever the user can mend; see `tutelage.errors`.
    """
    if resume and overwrite:
        raise UsageError("--resume continues and --overwrite deletes; give one of them")
    seconds: dict[str, float] = {}
    with full_disk_told(output), locked(output):
        if then is not None:
            then = _follow_up(config, then, Path(output) / STUDENT, resume)
        run, config, asked, verify = _begin(config, output, resume, overwrite)
        before = _look(config, run.path / "before.json", "before", observer, seconds)
        if not (run.path / "summary.json").exists():
            with Interrupts() as interrupts:
                answers, tally = _answers(config, run, asked, verify, interrupts, observer, seconds)
                learned = imitate(config, run, answers, interrupts=interrupts, observer=observer)
            seconds["imitation"] = learned.seconds
            counted = {"answers": tally.to_dict(), "imitation": learned.to_dict()}
            write_student(
                run.path / STUDENT,
                learned.checkpoint,
                config.student,
                _card(config, tally, learned),
            )
            replace_text(run.path / "summary.json", to_json(counted))  # last: now it is done
        counted = read_json(run.path / "summary.json")
        after = _look(
            _with_student(config, run.path / STUDENT),
            run.path / "after.json",
            "after",
            observer,
            seconds,
        )
    trained = added = None
    if then is not None:
        trained, added = _go_on(then, resume, observer, seconds)
    return ColdStart(
        student=run.path / STUDENT,
        answers=counted["answers"],
        imitation=counted["imitation"],
        before=before,
        after=after,
        seconds={phase: round(s, 1) for phase, s in seconds.items()},
        trained=trained,
        added=added,
    )


def _begin(
    config: Config, output: str | Path, resume: bool, overwrite: bool
) -> tuple[Run, Config, list[RenderedPrompt], Verify | None]:
    """The directory, the settings, the questions and who judges; refuses what cannot work."""
    if resume:
        run, config = reopen(output, config)
        asked, verify = questions_asked(config)
        if read_json(run.path / "data.json") != {"questions": digest(asked)}:
            raise UsageError(
                "the questions have changed since the cold start began, or a template that "
                "renders them; restore them, or start anew with another --output"
            )
        return run, config, asked, verify
    reserve_run(output, overwrite=overwrite)
    config = pin_models(config)
    asked, verify = questions_asked(config)
    run = create_run(output, overwrite=overwrite)
    replace_text(run.path / "environment.json", to_json(environment()))
    replace_text(run.path / "data.json", to_json({"questions": digest(asked)}))
    replace_text(run.path / "config.yaml", dump_config(config))  # last: now it can go on
    return run, config, asked, verify


def questions_asked(config: Config) -> tuple[list[RenderedPrompt], Verify | None]:
    """The questions as the teacher reads them, and who judges its answers; no weights are read."""
    settings = config.cold_start
    student, teacher = (
        facts_of(config.student, "student"),
        facts_of(config.teacher_model, "teacher"),
    )
    for signal in disagreements(student, teacher):
        if signal.severity == "stop":
            raise UsageError(f"{signal.evidence}. {signal.advice}")
    data = _data(config)
    prompts, _, _ = split_prompts(config.model_copy(update={"data": data}))
    if settings.questions is not None and settings.questions < len(prompts):
        count = settings.questions
        prompts = [prompts[(2 * i + 1) * len(prompts) // (2 * count)] for i in range(count)]
    verify = choose_verifier(data, prompts)
    asked, dropped = render_both_sides(config, prompts, student.tokenizer, teacher.tokenizer)
    if not asked:
        why = f": all {dropped} are longer than data.max_prompt_tokens" if dropped else ""
        raise DataError(f"{data.prompts} leaves no question for the teacher{why}")
    _require_rooms(config, asked, student, teacher)
    return asked, verify


def _data(config: Config) -> DataConfig:
    """Where questions come from; the run's own stay held out where the cold start has others."""
    data, prompts = config.data, config.cold_start.prompts
    if prompts is None:
        return data
    return data.model_copy(
        update={"prompts": prompts, "eval_prompts": data.eval_prompts or data.prompts}
    )


def _require_rooms(
    config: Config, asked: Sequence[RenderedPrompt], student: Facts, teacher: Facts
) -> None:
    tokens = _max_new_tokens(config)
    for side, view in ((student, asked), (teacher, [p.for_teacher() for p in asked])):
        longest = max(len(prompt.ids) for prompt in view)
        require_context(side, side.role, longest, tokens, "cold_start.max_new_tokens")


def _max_new_tokens(config: Config) -> int:
    return config.cold_start.max_new_tokens or config.rollout.max_new_tokens


def _look(
    config: Config, path: Path, when: str, observer: Observer, seconds: dict[str, float]
) -> dict[str, Any] | None:
    """What `check` finds, kept at `path`; None where it is not wanted."""
    if not config.cold_start.check:
        return None
    if not path.exists():
        observer({"kind": "note", "text": f"check {when} the cold start"})
        found = check(config, output=path, observer=observer)
        seconds[f"check_{when}"] = found.seconds
    return dict(read_json(path))


def _answers(
    config: Config,
    run: Run,
    asked: Sequence[RenderedPrompt],
    verify: Verify | None,
    interrupts: Interrupts,
    observer: Observer,
    seconds: dict[str, float],
) -> tuple[list[Rollout], Tally]:
    """What the teacher says that can be imitated; the teacher is gone afterwards."""
    started = shown = time.monotonic()
    rows = facts_of(config.student, "student").rows

    def heed() -> None:
        interrupts.heed(
            f"; every answer is kept in {run.path}; continue with the same command and --resume"
        )

    def after(tally: Tally) -> None:
        nonlocal shown
        if time.monotonic() - shown > _SHOW_EVERY_S:
            observer({"kind": "answers", **tally.to_dict()})
            shown = time.monotonic()

    def tell(text: str) -> None:
        observer({"kind": "note", "text": text})

    served = config.teacher_model.server is not None
    bench = replace(load_teacher_bench(config, rows), verify=verify)
    with workers_of(LocalEngine() if served else config.engine, "teacher", tell=tell) as map_units:
        answers, tally = fill_slots(
            bench,
            asked,
            config.cold_start,
            Ledger(run.path / "rollouts.jsonl"),
            after=after,
            heed=heed,
            map_units=map_units,
            elsewhere=partial(load_teacher_bench, config, rows),
        )
    observer({"kind": "answers", **tally.to_dict()})
    seconds["answers"] = time.monotonic() - started
    return answers, tally


def load_teacher_bench(config: Config, rows: int | None) -> AnswerBench:
    """The teacher at work; `rows` is the size of the student's head."""
    teacher = load_teacher(config.teacher_model, "teacher")
    teacher.vocabulary = min(teacher.vocabulary, rows or teacher.vocabulary)
    teacher.batch_size = config.rollout.batch_size
    judged_by, own = verifier_settings(_data(config)), config.cold_start
    return AnswerBench(
        teacher=teacher,
        verify=None if judged_by is None else make_verifier(judged_by),
        params=SamplingParams(
            max_new_tokens=_max_new_tokens(config), temperature=own.temperature, top_p=own.top_p
        ),
        right_only=own.right_only,
        seed=config.run.seed,
    )


def _with_student(config: Config, path: Path) -> Config:
    student = config.student.model_copy(update={"path": str(path), "revision": None})
    return config.model_copy(update={"student": student})


def _follow_up(config: Config, then: Config, student: Path, resume: bool) -> Config:
    """The settings of the distillation from this student; refused before any work."""
    if config.teacher != then.teacher:
        raise UsageError(
            "--then train goes on with the teacher of the cold start, "
            f"{config.teacher_model.path}, read as there, and its settings name "
            f"{then.teacher_model.path}; give both the same teacher"
        )
    if not (resume and (Path(then.run.dir) / "config.yaml").exists()):
        reserve_run(then.run.dir)
    return _with_student(then, student)


def _go_on(
    config: Config, resume: bool, observer: Observer, seconds: dict[str, float]
) -> tuple[TrainResult, Added | None]:
    started = time.monotonic()
    trained = train(config, resume=resume, observer=observer)
    seconds["train"] = time.monotonic() - started
    return trained, what_it_added(trained)


def what_it_added(trained: TrainResult) -> Added | None:
    """Accuracy after the run minus before it, paired by held-out question."""
    if "accuracy" not in trained.first or "accuracy" not in trained.last:
        return None
    first, last = (
        {
            row["id"]: row["accuracy"]
            for row in read_lines(trained.run / "eval" / f"step-{record['step']}.jsonl")
            if row["accuracy"] is not None
        }
        for record in (trained.first, trained.last)
    )
    both = [id_ for id_ in first if id_ in last]
    before, after = [first[i] for i in both], [last[i] for i in both]
    low, high = difference_interval(after, before)
    return Added(
        before=sum(before) / len(both),
        after=sum(after) / len(both),
        low=low,
        high=high,
        questions=len(both),
    )


def _card(config: Config, tally: Tally, learned: Imitated) -> str:
    settings = config.cold_start
    losses = [f"| {step} | {loss:.4g} |" for step, loss in learned.validation]
    return card(
        config,
        how="Trained by imitation of the teacher's answers (a cold start), before any on-policy "
        "distillation.",
        tag="sft",
        facts={
            "prompts": f"`{source_name(settings.prompts or config.data.prompts)}`",
            "answers": f"{tally.kept} kept of {tally.tries} drawn",
            "steps": f"{learned.step} of {learned.steps}",
        },
        evaluation=["| step | validation loss, nats per token |", "|---|---|", *losses]
        if losses
        else ["None was made."],
        settings={
            "cold_start": changed_settings(settings),
            "optimizer": changed_settings(config.optimizer),
        },
    )
