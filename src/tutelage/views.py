"""What student and teacher read of a question, and what a control puts in its place."""

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from tutelage.config import Config, ModelConfig, ShuffledTeacher, WrongContext
from tutelage.data.contexts import SIBLINGS, partners, shown, siblings, with_context_of
from tutelage.data.render import render, render_all
from tutelage.models.anatomy import quiet_transformers
from tutelage.models.base import Teacher
from tutelage.types import Prompt, RenderedPrompt, Rollout


def render_both_sides(
    config: Config,
    prompts: Sequence[Prompt],
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
) -> tuple[list[RenderedPrompt], int]:
    """Prompts as student and teacher read them, and how many were too long for the student."""
    data = config.data
    with quiet_transformers():  # it would warn of prompts that are refused with a reason later
        kept, dropped = render(
            prompts, student, config.student, data.max_prompt_tokens, data.use_chat_template
        )
        if config.teacher_model.own_prompt:
            read = for_teacher(config, [p.prompt for p in kept], teacher)
            kept = [replace(p, teacher_ids=ids) for p, ids in zip(kept, read, strict=True)]
    return kept, dropped


def for_teacher(
    config: Config, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[int, ...]]:
    """What the teacher reads; where it is shown other rollouts, their places stay empty yet."""
    settings = config.teacher_model
    if unknown := settings.columns & set(SIBLINGS):
        empty = {name: f"{{{name}}}" for name in unknown}
        prompts = [shown(empty, prompt) for prompt in prompts]
    return render_all(prompts, tokenizer, settings, config.data.use_chat_template, "teacher")


def controlled(
    config: Config, prompts: Sequence[RenderedPrompt], tokenizer: PreTrainedTokenizerBase
) -> list[RenderedPrompt]:
    """Training prompts as a control has the teacher read them; others stay as they are."""
    control, seed = config.control, config.run.seed
    if not isinstance(control, ShuffledTeacher | WrongContext):
        return list(prompts)
    other = partners([p.prompt for p in prompts], seed)
    if isinstance(control, ShuffledTeacher):
        read = {p.prompt.id: p.for_teacher().ids for p in prompts}
        return [replace(p, teacher_ids=read[other[p.prompt.id].id]) for p in prompts]
    mixed = [with_context_of(p.prompt, other[p.prompt.id]) for p in prompts]
    every = for_teacher(config, mixed, tokenizer)
    return [replace(p, teacher_ids=ids) for p, ids in zip(prompts, every, strict=True)]


def wants_siblings(config: Config) -> bool:
    """Whether the teacher is shown other rollouts of the question."""
    return bool(config.teacher_model.columns & set(SIBLINGS))


def show_siblings(config: Config, teacher: Teacher, rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The rollouts under what the teacher is shown; without an answer to show, as the student."""
    settings = config.teacher_model
    needed = settings.columns & set(SIBLINGS)
    if not needed:
        return list(rollouts)
    groups: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout.prompt.id, []).append(rollout)
    names = list(groups)
    ahead = int(isinstance(config.control, WrongContext))
    others = {name: groups[names[(i + ahead) % len(names)]] for i, name in enumerate(names)}

    told = [siblings(rollout, others[rollout.prompt.id]) for rollout in rollouts]
    places = [i for i, columns in enumerate(told) if all(columns[n] is not None for n in needed)]
    every = render_all(
        [shown(told[i], rollouts[i].prompt) for i in places],
        teacher.tokenizer,
        settings,
        config.data.use_chat_template,
        "teacher",
    )
    room = teacher.context
    fitting = {
        i: ids
        for i, ids in zip(places, every, strict=True)
        if room is None or len(ids) + len(rollouts[i].completion_ids) <= room
    }
    return [replace(r, teacher_prompt_ids=fitting.get(i)) for i, r in enumerate(rollouts)]


def other_contexts(
    config: Config, prompts: Sequence[RenderedPrompt], tokenizer: PreTrainedTokenizerBase
) -> dict[str, tuple[int, ...]]:
    """What a self-teacher reads of each question beside another one's context, by prompt id.

    Empty where its rows have no context, or no contrast is wanted.
    """
    teacher, columns = config.teacher, config.teacher_model.columns
    is_asked = not isinstance(teacher, ModelConfig) and teacher.contrast
    if not is_asked or not columns or columns & set(SIBLINGS) or len(prompts) < 2:
        return {}
    other = partners([p.prompt for p in prompts], config.run.seed)
    mixed = [with_context_of(p.prompt, other[p.prompt.id]) for p in prompts]
    every = for_teacher(config, mixed, tokenizer)
    return {p.prompt.id: ids for p, ids in zip(prompts, every, strict=True)}
