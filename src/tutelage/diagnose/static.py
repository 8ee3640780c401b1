"""What can be said of a pair on given questions before any weights are read."""

from collections.abc import Sequence
from dataclasses import replace

from tutelage.alignment.bench import spread
from tutelage.alignment.spines import Candidate
from tutelage.config import Config, ModelConfig, PromptFormat, PromptSet
from tutelage.data.prompts import load_prompts, split_held_out
from tutelage.data.render import render, render_one
from tutelage.data.verify import Verify, choose_verifier
from tutelage.errors import DataError, TutelageError
from tutelage.models.anatomy import decode_text
from tutelage.models.facts import Facts, disagreements
from tutelage.signals import Signal
from tutelage.types import RenderedPrompt

BASELINE = "baseline"
"""The name of `check.baseline` among the teachers."""
_AROUND = 24
"""Characters shown where two renderings part."""


def ask(config: Config, student: Facts) -> tuple[list[RenderedPrompt], Verify | None]:
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


def teachers_of(config: Config) -> dict[str, ModelConfig]:
    """Everyone who might teach, by name; the run's own first."""
    teachers = {"teacher": config.teacher_model, **config.align.teachers}
    baseline = config.check.baseline
    return teachers if baseline is None else teachers | {BASELINE: baseline}


def reworded(config: Config, change: PromptSet) -> Config:
    """The run with another prompt set's questions or words, for everyone."""
    words = change.model_dump(include={"user_prompt", "system_prompt"}, exclude_none=True)

    def say(model: ModelConfig) -> ModelConfig:
        return model.model_copy(update=words) if model.own_prompt else model

    teacher = config.teacher
    if isinstance(teacher, ModelConfig):
        teacher = say(teacher)
    elif "system_prompt" in words:  # a self-teacher's turn is what it is shown
        teacher = teacher.model_copy(update={"system_prompt": words["system_prompt"]})
    baseline = config.check.baseline
    others = {name: say(model) for name, model in config.align.teachers.items()}
    return config.model_copy(
        update={
            "student": config.student.model_copy(update=words),
            "teacher": teacher,
            "align": config.align.model_copy(update={"teachers": others}),
            "check": config.check.model_copy(
                update={} if baseline is None else {"baseline": say(baseline)}
            ),
            "data": config.data.model_copy(
                update={} if change.prompts is None else {"eval_prompts": change.prompts}
            ),
        }
    )


def view_in(config: Config, candidate: Candidate) -> PromptFormat | None:
    """How a teacher reads the prompts of these settings; None: as the student does."""
    settings = teachers_of(config).get(candidate.name)
    if settings is not None:
        return settings if settings.own_prompt else None
    words = {"system_prompt": config.student.system_prompt}  # of a ready-made context
    return None if candidate.view is None else candidate.view.model_copy(update=words)


def signals_of(
    config: Config,
    student: Facts,
    teacher: Facts,
    questions: Sequence[RenderedPrompt],
    longest: int,
) -> list[Signal]:
    """Everything noticed about a pair on these questions; `stop` where it cannot be combined.

    `longest` is the number of tokens of the longest prompt of all that will be read.
    """
    found: list[Signal] = []
    for signal in disagreements(student, teacher):
        if signal.name == "templates_differ":
            evidence = differing_renderings(config, student, teacher, questions)
            if evidence is None:  # other text, and yet the same tokens
                continue
            signal = replace(signal, evidence=f"{signal.evidence}: {evidence}")
        found.append(signal)
    return found + contexts((student, teacher), longest, config.rollout.max_new_tokens)


def differing_renderings(
    config: Config, student: Facts, teacher: Facts, questions: Sequence[RenderedPrompt]
) -> str | None:
    """Where the teacher's own template makes other tokens of the same prompts; None: nowhere."""
    own = config.student.model_copy(update={"chat_template": None})
    different: list[tuple[RenderedPrompt, tuple[int, ...]]] = []
    for asked in questions:
        try:
            ids = render_one(
                asked.prompt, teacher.tokenizer, own, config.data.use_chat_template, teacher.role
            )
        except TutelageError as error:
            return f"its own cannot render what the student reads ({error})"
        if ids != asked.ids:
            different.append((asked, ids))
    if not different:
        return None
    asked, ids = different[0]
    shared = next(
        (i for i, (a, b) in enumerate(zip(asked.ids, ids, strict=False)) if a != b),
        min(len(asked.ids), len(ids)),
    )
    read = (
        decode_text(student.tokenizer, part[shared:], special=True)[:_AROUND]
        for part in (asked.ids, ids)
    )
    mine, theirs = (repr(text) if text else "nothing" for text in read)
    return (
        f"{len(different)} of {len(questions)} prompts come out otherwise (first: "
        f"{asked.prompt.id!r}, from token {shared} on the student reads {mine} where the "
        f"{teacher.role}'s own template writes {theirs})"
    )


def contexts(sides: Sequence[Facts], longest: int, new: int) -> list[Signal]:
    """Sides that cannot read the longest prompt together with a whole completion."""
    return [
        Signal(
            name="context_too_short",
            severity="stop",
            evidence=f"the {side.role} reads {side.context} tokens, and the longest prompt with "
            f"rollout.max_new_tokens needs {longest + new}",
            advice="lower rollout.max_new_tokens or data.max_prompt_tokens",
        )
        for side in sides
        if side.context is not None and side.context < longest + new
    ]


def room(sides: Sequence[Facts], longest: int) -> int | None:
    """Tokens that every side still reads after the longest prompt; None: nobody says."""
    known = [side.context - longest for side in sides if side.context is not None]
    return min(known, default=None)
