"""What a network and its tokenizer say of themselves: head, vocabulary, context, stop ids, text."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from tutelage.errors import UsageError
from tutelage.ops.projection import Head


def context_length(config: PretrainedConfig) -> int | None:
    """Tokens a model reads; None where its config does not say."""
    text: Any = config.get_text_config()
    names = ("max_position_embeddings", "n_positions", "max_seq_len")
    return next((size for name in names if (size := getattr(text, name, None))), None)


def head_rows(model: PreTrainedModel) -> int:
    """Rows of the output head, padding included."""
    head = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    return int(weight.shape[0]) if weight is not None else int(model.config.vocab_size)


@torch.no_grad()
def find_head(model: PreTrainedModel) -> Head:
    """How the model's last hidden states become its logits.

    What the config says of caps and scales is tried on a few tokens; a model that
    does something else gets a head that takes its logits as they are.
    """
    config: Any = model.config
    scale = getattr(config, "logit_scale", None) or 1 / (
        getattr(config, "logits_scaling", None) or 1
    )
    embedding: Any = model.get_output_embeddings()
    if embedding is None:
        return Head(weight=None)
    head = Head(
        weight=embedding.weight,
        bias=getattr(embedding, "bias", None),
        scale=float(scale),
        softcap=getattr(config, "final_logit_softcapping", None),
    )
    inputs = {"input_ids": torch.arange(4, device=model.device).unsqueeze(0) % head_rows(model)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    expected = model(**inputs, use_cache=False).logits[0].float()
    try:
        states = model.base_model(**inputs, use_cache=False).last_hidden_state[0]
        found = head.logits(states).float()
    except (AttributeError, RuntimeError, TypeError):
        return Head(weight=None)
    tolerance = 1e-4 if states.dtype == torch.float32 else 2e-2
    # Weights that are NaN are the guards' affair, once a step shows them.
    largest = float(expected.abs().nan_to_num().max())
    agree = found.shape == expected.shape and torch.allclose(
        found, expected, rtol=tolerance, atol=tolerance * largest, equal_nan=True
    )
    return head if agree else Head(weight=None)


def decode_text(
    tokenizer: PreTrainedTokenizerBase, ids: Iterable[int], special: bool = False
) -> str:
    """Token ids as text, without special tokens unless they are wanted."""
    return cast(str, tokenizer.decode(list(ids), skip_special_tokens=not special))


def stop_ids(*configs: object) -> frozenset[int]:
    """Ids that end a completion: those of the generation config, the config and the tokenizer.

    Raises:
        UsageError: something else than token ids stands there.
    """
    found: set[int] = set()
    for value in (getattr(config, "eos_token_id", None) for config in configs):
        ids = value if isinstance(value, list | tuple) else () if value is None else (value,)
        if any(type(i) is not int for i in ids):
            raise UsageError(
                f"the model's eos_token_id is {value!r:.80}, and token ids are whole numbers; mend "
                "its generation_config.json, config.json or tokenizer"
            )
        found |= set(ids)
    return frozenset(found)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' own progress bars and notes, which would mix with ours."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
