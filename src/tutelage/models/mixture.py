"""Rollouts of a step, drawn by the student, or some of them by the teacher."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tutelage.config import RolloutConfig
from tutelage.models.base import Sampler
from tutelage.ops.sampling import uniforms
from tutelage.types import RenderedPrompt, Rollout, SamplingParams


def draw_rollouts(
    student: Sampler,
    teacher: Sampler,
    prompts: Sequence[RenderedPrompt],
    settings: RolloutConfig,
    *,
    seed: int,
    step: int,
) -> list[Rollout]:
    """`group_size` rollouts of each prompt; the student draws its share, the teacher the rest.

    Who draws which depends on (seed, step, prompt id, sample index) alone.
    """
    params = SamplingParams(
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
    )
    key: dict[str, Any] = {"group_size": settings.group_size, "seed": seed, "step": step}
    if settings.student_share == 1:
        return student.sample(prompts, params, **key)

    def students(prompt_id: str, index: int) -> bool:
        draw = uniforms(1, seed, step, prompt_id, index, "source")[0]
        return bool(draw < settings.student_share)

    own = student.sample(prompts, params, **key, only=students)
    others = teacher.sample(
        [prompt.for_teacher() for prompt in prompts],
        params,
        **key,
        only=lambda *sample: not students(*sample),
    )
    place = {prompt.prompt.id: i for i, prompt in enumerate(prompts)}
    drawn = own + [
        replace(r, source="teacher", prompt_ids=prompts[place[r.prompt.id]].ids) for r in others
    ]
    return sorted(drawn, key=lambda r: (place[r.prompt.id], r.index))
