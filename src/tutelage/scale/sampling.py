"""A model whose samples are drawn by many workers, batch for batch as it would draw them itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from tutelage.config import LocalModelConfig
from tutelage.models.loading import load_model
from tutelage.models.local import Draw, LocalModel, by_length, draws_of
from tutelage.models.memory import halve_until_it_fits
from tutelage.scale.units import Job, MapUnits
from tutelage.types import RenderedPrompt, Rollout, SamplingParams


@dataclass(frozen=True, slots=True)
class DrawBatch:
    """Samples that are decoded together."""

    draws: tuple[Draw, ...]
    """Which."""
    params: SamplingParams
    """How."""
    seed: int
    """Decides them, with the step, prompt ids and indices."""
    step: int
    """As in `Sampler.sample`."""


def load_sampler(settings: LocalModelConfig, role: str, vocabulary: int) -> LocalModel:
    """A frozen model as a worker needs it; `vocabulary` is what all sides of its run share."""
    model = load_model(settings, role)
    model.model.requires_grad_(False)
    model.vocabulary = vocabulary
    return model


def draw_batch(model: LocalModel, batch: DrawBatch) -> list[Rollout]:
    """The rollouts of a batch; in smaller parts where memory does not hold it."""
    drawn: list[Rollout] = []

    def draw_next(size: int) -> None:
        part = batch.draws[len(drawn) : len(drawn) + size]
        drawn.extend(model.draw(part, batch.params, batch.seed, batch.step))

    while len(drawn) < len(batch.draws):
        halve_until_it_fits(
            draw_next,
            len(batch.draws) - len(drawn),
            lambda size, reason: None,
            "Lower rollout.max_new_tokens.",
        )
    return drawn


class SharedSampler:
    """A `Sampler` that draws what a model would, with many hands."""

    def __init__(
        self, model: LocalModel, settings: LocalModelConfig, role: str, map_units: MapUnits
    ) -> None:
        self._size, self._map = model.batch_size, map_units
        self._job = Job(
            prepare=partial(load_sampler, settings, role, model.vocabulary),
            work=draw_batch,
            here=model,
        )

    def sample(
        self,
        prompts: Sequence[RenderedPrompt],
        params: SamplingParams,
        *,
        group_size: int = 1,
        seed: int,
        step: int,
        only: Callable[[str, int], bool] = lambda prompt_id, index: True,
    ) -> list[Rollout]:
        """`group_size` rollouts of each prompt, prompt by prompt."""
        draws = draws_of(prompts, group_size, only)
        order = by_length(draws)
        places = {
            f"batch {start // self._size} of step {step}": order[start : start + self._size]
            for start in range(0, len(order), self._size)
        }
        units = {
            name: DrawBatch(tuple(draws[i] for i in part), params, seed, step)
            for name, part in places.items()
        }
        rollouts = {
            place: rollout
            for name, drawn in self._map(self._job, units)
            for place, rollout in zip(places[name], drawn, strict=True)
        }
        return [rollouts[i] for i in range(len(draws))]
