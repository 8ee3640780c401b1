"""Models in this process, through transformers."""

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tutelage.models import lora
from tutelage.models.anatomy import (
    context_length,
    decode_text,
    find_head,
    head_rows,
    quiet_transformers,
    stop_ids,
)
from tutelage.models.decoding import decode
from tutelage.models.memory import halve_until_it_fits
from tutelage.models.prefixes import can_share, shared_prompts, shared_states
from tutelage.models.tokens import token_text
from tutelage.ops.logprobs import log_softmax_
from tutelage.ops.projection import Head
from tutelage.ops.sampling import uniforms
from tutelage.types import Batch, RenderedPrompt, Rollout, SamplingParams

Draw = tuple[RenderedPrompt, int]
"""A sample to draw: of which prompt, and which of its samples."""


def draws_of(
    prompts: Sequence[RenderedPrompt],
    group_size: int,
    only: Callable[[str, int], bool] = lambda prompt_id, index: True,
) -> list[Draw]:
    """`group_size` samples of each prompt, prompt by prompt, without those `only` leaves out."""
    return [
        (prompt, index)
        for prompt in prompts
        for index in range(group_size)
        if only(prompt.prompt.id, index)
    ]


def by_length(draws: Sequence[Draw]) -> list[int]:
    """Places in the order of decoding: neighbours in length share a batch, so little is padding."""
    return sorted(range(len(draws)), key=lambda i: len(draws[i][0].ids))


@dataclass(frozen=True, slots=True)
class LocalJudgement:
    """A model's view of a batch's states: hidden states, made log-probabilities chunk by chunk."""

    hidden: Tensor
    head: Head

    def at(self, rows: slice, student: Tensor) -> Tensor:
        """log q [n, V] of these states, in the student's precision or its own, the better one."""
        logits = self.head.logits(self.hidden[rows])
        return log_softmax_(logits.to(torch.promote_types(logits.dtype, student.dtype)))


@dataclass
class LocalModel:
    """A causal language model with its tokenizer; a `Sampler` and a `Scorer`."""

    model: PreTrainedModel
    """The network, in evaluation mode: dropout would make the sampled policy and the
    trained one differ."""
    tokenizer: PreTrainedTokenizerBase
    """Its tokenizer."""
    temperature: float = 1.0
    """Temperature of the log-probabilities it scores with."""
    vocabulary: int = 0
    """Token ids in use: logits beyond them are padding of the head."""
    batch_size: int = 256
    """Rollouts decoded at once."""
    policy_step: int = 0
    """Optimizer steps the weights have taken."""
    ignored: tuple[str, ...] = ()
    """Weights in its files that the architecture has no place for."""
    autocast: bool = False
    """Layers compute in bfloat16; weights and logits stay as they are."""
    adapter: Any = None
    """peft's view of the network, where LoRA additions are in it."""
    adapted: bool = True
    """False: the additions are switched off, and this is the model they were added to."""
    checkpointed: bool = False
    """Layers run a second time in the backward pass."""
    sharded: bool = False
    """Each rank of the run holds a part of the weights; see `models/sharded.py`."""
    gatherings: int = 0
    """Above 0: the parts are gathered at the moment."""

    def __post_init__(self) -> None:
        self.vocabulary = self.vocabulary or head_rows(self.model)
        self.stop_ids = stop_ids(self.model.generation_config, self.model.config, self.tokenizer)
        with contextlib.nullcontext() if self.adapter is None else lora.switched_off(self.adapter):
            self.raw_head = find_head(self.model)
        self.shares_prompts = self.raw_head.weight is not None and can_share(self.model)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def head(self) -> Head:
        """How `hidden` becomes logits at this model's temperature."""
        weight, bias = self.raw_head.weight, self.raw_head.bias
        if self.sharded and weight is not None:  # the gathered ones, after a forward pass
            output: Any = self.model.get_output_embeddings()
            weight, bias = output.weight, getattr(output, "bias", None)
        if weight is not None and self.adapter is not None and self.adapted:
            addition = lora.adapted_weight(self.model.get_output_embeddings())
            weight = weight if addition is None else addition
        return replace(
            self.raw_head,
            weight=weight,
            bias=bias,
            temperature=self.temperature,
            vocabulary=self.vocabulary,
        )

    def hidden(self, batch: Batch) -> Tensor:
        """Hidden states [N, H] at the states of the scored tokens, with gradient where enabled."""
        with self._as_set():
            picked = self._shared_states(batch)
            if picked is None:
                picked = self._states(batch)[batch.loss_mask.to(self.device)]
        if self.autocast and self.raw_head.weight is not None:
            picked = picked.to(self.raw_head.weight.dtype)
        return picked

    def _states(self, batch: Batch) -> Tensor:
        """The last hidden states [B, T, H], or the logits where no head is known."""
        inputs = {"input_ids": batch.input_ids.to(self.device)}
        if batch.position_ids is None:
            inputs["attention_mask"] = batch.attention_mask.to(self.device)
        else:
            inputs["position_ids"] = batch.position_ids.to(self.device)
        if self.raw_head.weight is None:
            states = self.model(**inputs, use_cache=False).logits
        elif self.sharded:
            states = cast(Any, self.model).last_states(**inputs, use_cache=False)
        else:
            states = self.model.base_model(**inputs, use_cache=False).last_hidden_state
        return cast(Tensor, states)

    def _shared_states(self, batch: Batch) -> Tensor | None:
        """The hidden states [N, H], where rows share prompts and the model allows it."""
        twice = self.checkpointed and torch.is_grad_enabled()  # what is read twice is kept twice
        if self.sharded or twice or not self.shares_prompts:
            return None
        shared = shared_prompts(batch)
        return None if shared is None else shared_states(self.model, shared)

    @contextlib.contextmanager
    def _as_set(self) -> Iterator[None]:
        """Inside, the network computes as `autocast` and `adapted` say."""
        with contextlib.ExitStack() as stack:
            if self.adapter is not None and not self.adapted:
                stack.enter_context(lora.switched_off(self.adapter))
            if self.autocast:
                stack.enter_context(torch.autocast(self.device.type, dtype=torch.bfloat16))
            yield

    def state_logprobs(self, batch: Batch) -> Tensor:
        """log p [N, V] at the states of the scored tokens, without gradient in the head."""
        return self.head.logits(self.hidden(batch)).log_softmax(-1)

    @property
    def context(self) -> int | None:
        """Tokens it reads; None where its config does not say."""
        return context_length(self.model.config)

    @torch.no_grad()
    def judge(self, batch: Batch, propose: Callable[[int], Tensor]) -> LocalJudgement:
        """Its view of a batch's states; nothing need be proposed to it."""
        return LocalJudgement(self.hidden(batch), self.head)

    @torch.no_grad()
    def score(self, batch: Batch) -> Tensor:
        """Log-probabilities [N, V] at the states of the N scored tokens, without gradient."""
        return self.state_logprobs(batch)

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
        rollouts: dict[int, Rollout] = {}
        order = by_length(draws)

        def sample_next(size: int) -> None:
            places = order[len(rollouts) : len(rollouts) + size]
            rollouts.update(
                zip(places, self.draw([draws[i] for i in places], params, seed, step), strict=True)
            )

        def told(size: int, reason: str) -> None:
            self.batch_size = size

        while len(rollouts) < len(draws):
            size = min(self.batch_size, len(draws) - len(rollouts))
            halve_until_it_fits(sample_next, size, told, "Lower rollout.max_new_tokens.")
        return [rollouts[i] for i in range(len(draws))]

    def draw(
        self, draws: Sequence[Draw], params: SamplingParams, seed: int, step: int
    ) -> list[Rollout]:
        """Rollouts of these samples, decoded as one batch."""
        uniform = torch.stack(
            [
                torch.from_numpy(
                    uniforms(params.max_new_tokens, seed, step, prompt.prompt.id, index)
                )
                for prompt, index in draws
            ]
        )
        with self._as_set():
            completions = decode(
                self.model,
                [prompt.ids for prompt, _ in draws],
                uniform.to(self.device),
                params,
                [prompt.max_new_tokens or params.max_new_tokens for prompt, _ in draws],
                self.stop_ids,
                self.vocabulary,
            )
        return [
            Rollout(
                prompt=prompt.prompt,
                index=index,
                prompt_ids=prompt.ids,
                teacher_prompt_ids=prompt.teacher_ids,
                completion_ids=completion.ids,
                logprobs=completion.logprobs,
                finish_reason=completion.finish_reason,
                text=self.decode_text(completion.ids),
                policy_step=self.policy_step,
            )
            for (prompt, index), completion in zip(draws, completions, strict=True)
        ]

    def save(self, folder: Path) -> None:
        """What is trained, as transformers or peft saves it, and the tokenizer."""
        with quiet_transformers():
            if self.adapter is None:
                self.model.save_pretrained(folder)
            else:
                lora.save_adapter(self.adapter, folder)
            self.tokenizer.save_pretrained(folder)

    def merged_weights(self) -> dict[str, Tensor]:
        """Every weight by the name it has without an adapter, additions included."""
        return self.model.state_dict() if self.adapter is None else lora.merged_weights(self.model)

    def without_adapter(self) -> "LocalModel":
        """The model that the adapter was added to; it shares the weights with this one."""
        base = copy.copy(self)
        base.adapted = False
        return base

    def decode_text(self, ids: Iterable[int]) -> str:
        """Token ids as text, without special tokens."""
        return decode_text(self.tokenizer, ids)

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """Each token id as the text a reader sees, special tokens included."""
        return [token_text(self.tokenizer, i) for i in ids]
