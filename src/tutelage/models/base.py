"""The two protocols every engine implements."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from tutelage.types import Batch, RenderedPrompt, Rollout, SamplingParams


class Sampler(Protocol):
    """Draws completions."""

    def sample(
        self,
        prompts: Sequence[RenderedPrompt],
        params: SamplingParams,
        *,
        group_size: int,
        seed: int,
        step: int,
        only: Callable[[str, int], bool] = ...,
    ) -> list[Rollout]:
        """`group_size` rollouts of each prompt, prompt by prompt.

        The draws depend on (seed, step, prompt id, sample index) alone. `only` leaves out
        samples by (prompt id, index).
        """
        ...


class Scorer(Protocol):
    """Judges the tokens of a batch."""

    def score(self, batch: Batch) -> Tensor:
        """Log-probabilities [N, V] at the states of the N scored tokens, without gradient."""
        ...
