"""The protocols that engines implement, in process or behind a server."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tutelage.types import Batch, RenderedPrompt, Rollout, SamplingParams, TokenScores


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


class Judgement(Protocol):
    """What a teacher says of the states of a batch."""

    def at(self, rows: slice, student: Tensor) -> Tensor | TokenScores:
        """log q of these states: all of it [n, V], or what a server gave.

        Args:
            rows: which of the batch's N states.
            student: log p [n, V] of the student there.
        """
        ...


class Scorer(Protocol):
    """Judges the tokens of a batch."""

    def judge(self, batch: Batch, propose: Callable[[int], Tensor]) -> Judgement:
        """Its view of the states of the N scored tokens, without gradient.

        Args:
            batch: whose scored tokens are the states.
            propose: the student's k most likely tokens [N, k]; called only by who cannot give
                every token's log-probability.
        """
        ...


class Teacher(Sampler, Scorer, Protocol):
    """Who scores the student's rollouts, and may sample some itself."""

    tokenizer: PreTrainedTokenizerBase
    """Its tokenizer."""
    stop_ids: frozenset[int]
    """Ids that end a completion."""
    vocabulary: int
    """Token ids in use."""
    temperature: float
    """Temperature of the log-probabilities it gives."""
    batch_size: int
    """Rollouts decoded at once."""
    ignored: tuple[str, ...]
    """Weights in its files that the architecture has no place for."""

    @property
    def context(self) -> int | None:
        """Tokens it reads; None where nobody says."""
        ...
