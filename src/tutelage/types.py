"""The nouns a run is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat prompt."""

    role: str
    """system, user or assistant."""
    content: str
    """The text of the turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A question as the data gives it, before it is rendered for a model."""

    id: str
    """Stable name of the row; random draws are keyed by it."""
    messages: tuple[Message, ...] = ()
    """Chat turns; empty when the prompt is plain text."""
    text: str = ""
    """Plain text; empty when the prompt is a chat."""
    answer: str | None = None
    """Reference answer, where the data has one."""
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Whatever else the row carries that a verifier may need."""

    @property
    def question(self) -> str:
        """The text a reader would call the question."""
        return self.text or "\n".join(m.content for m in self.messages)

    @property
    def source(self) -> str | None:
        """The data set its row names, in `data_source` as verl writes it or in `source`."""
        named = self.metadata.get("data_source") or self.metadata.get("source")
        return str(named) if isinstance(named, str | int) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedPrompt:
    """A prompt as the token ids that a model reads."""

    prompt: Prompt
    """The row it came from."""
    ids: tuple[int, ...]
    """Token ids, special tokens and generation header included."""
    teacher_ids: tuple[int, ...] | None = None
    """The prompt as the teacher reads it; None: the same ids."""
    max_new_tokens: int | None = None
    """Most tokens of its completions, where that is fewer than the sampling parameters allow."""

    def for_teacher(self) -> RenderedPrompt:
        """The prompt that the teacher answers when it samples."""
        return self if self.teacher_ids is None else replace(self, ids=self.teacher_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How completions are drawn."""

    max_new_tokens: int
    """Most tokens of a completion, the stop token included."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token."""
    top_p: float = 1.0
    """Smallest set of most likely tokens with this mass; 1 keeps all."""
    top_k: int = 0
    """Most likely tokens kept; 0 keeps all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One completion a model sampled, and how it was sampled."""

    prompt: Prompt
    """The question."""
    index: int
    """Which sample of the prompt this is, from 0."""
    prompt_ids: tuple[int, ...]
    """Rendered prompt."""
    teacher_prompt_ids: tuple[int, ...] | None = None
    """The prompt under which the teacher scores the completion; None: the same ids."""
    completion_ids: tuple[int, ...]
    """Sampled tokens, the stop token included where there is one."""
    logprobs: tuple[float, ...]
    """Log-probability of each sampled token at the sampling temperature, in nats,
    before top-p and top-k."""
    finish_reason: FinishReason
    """`stop` when the model ended it, `length` when the limit did."""
    text: str
    """The completion decoded without special tokens."""
    policy_step: int
    """Optimizer steps the sampling weights had taken."""
    source: Literal["student", "teacher"] = "student"
    """Who sampled it."""
    reward: float | None = None
    """1 right, 0 wrong, None not verified."""
    has_answer: bool | None = None
    """Whether a final answer in the form that the verifier expects is there; None where it was not
    verified or any text may be an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rollouts as padded tensors; made by `collate`, which alone shifts and masks."""

    input_ids: Tensor
    """int64 [B, T]: prompt, completion, right padding."""
    attention_mask: Tensor
    """int64 [B, T]: 1 on real tokens."""
    loss_mask: Tensor
    """bool [B, T]: True where the logits at t predict a completion token."""
    targets: Tensor
    """int64 [N]: the sampled tokens, row by row, in the order of `loss_mask`."""
    rows: Tensor
    """int64 [N]: which rollout each target belongs to."""
    positions: Tensor
    """int64 [N]: place of each target in its completion, from 0."""
    sampling_logprobs: Tensor
    """float [N]: log-probability the student gave each target when it sampled it, NaN for
    targets the teacher sampled."""
    position_ids: Tensor | None = None
    """int64 [1, T]: place of each token in its own rollout, where rollouts stand one after the
    other in one row and none sees another; None: each has a row of its own."""


@dataclass(frozen=True, slots=True)
class Support:
    """The tokens two distributions are compared on, at each of N states."""

    ids: Tensor
    """int64 [N, K]: token ids; slots that `mask` leaves out repeat valid ids."""
    mask: Tensor
    """bool [N, K]: which slots count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """What a served teacher says of N states: some tokens' log-probabilities, not all."""

    sampled: Tensor
    """float [N]: log q of the sampled tokens."""
    ids: Tensor
    """int64 [N, K]: the tokens of the support."""
    logprobs: Tensor
    """float [N, K]: log q of them over the full vocabulary; the rest is the tail's mass."""
    mask: Tensor
    """bool [N, K]: which slots count."""
    likely_ids: Tensor | None = None
    """int64 [N, M]: the teacher's own most likely tokens, most likely first, for metrics."""
    likely_logprobs: Tensor | None = None
    """float [N, M]: log q of them."""


@dataclass(frozen=True, slots=True)
class LossOutput:
    """What an objective says about N tokens."""

    losses: Tensor
    """float [N], nats per token; the gradient of its sum is the update."""
    metrics: Mapping[str, Tensor]
    """Per-token diagnostics [N] of the objective itself, detached; NaN where undefined."""
