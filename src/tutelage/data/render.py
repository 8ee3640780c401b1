"""Prompts as the token ids a model reads."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from tutelage.errors import DataError, UsageError
from tutelage.types import Prompt, RenderedPrompt


def render(
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    template: Mapping[str, Any],
    max_prompt_tokens: int,
    use_chat_template: bool = True,
) -> tuple[list[RenderedPrompt], int]:
    """Token ids of each prompt, and how many prompts were too long and dropped.

    Raises:
        UsageError: chat prompts for a tokenizer without a chat template.
        DataError: a prompt that the template refuses, or that has no token.
    """
    kept: list[RenderedPrompt] = []
    for prompt in prompts:
        ids = render_one(prompt, tokenizer, template, use_chat_template)
        if len(ids) <= max_prompt_tokens:
            kept.append(RenderedPrompt(prompt=prompt, ids=ids))
    return kept, len(prompts) - len(kept)


def render_one(
    prompt: Prompt,
    tokenizer: PreTrainedTokenizerBase,
    template: Mapping[str, Any],
    use_chat_template: bool = True,
) -> tuple[int, ...]:
    """Token ids of one prompt.

    Plain text goes through the chat template as one user turn where there is a
    template, and is tokenised as it stands where there is none.
    """
    has_template = getattr(tokenizer, "chat_template", None) is not None
    if prompt.messages and not has_template:
        raise UsageError(
            f"prompt {prompt.id!r} is a chat, but the student's tokenizer has no chat template; "
            "use plain-text prompts, or a tokenizer saved with its template"
        )
    if prompt.messages or (has_template and use_chat_template):
        turns = prompt.messages or ()
        messages = [{"role": turn.role, "content": turn.content} for turn in turns] or [
            {"role": "user", "content": prompt.text}
        ]
        try:
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **template
            )
        except Exception as error:  # templates raise whatever they like
            raise DataError(
                f"the chat template cannot render prompt {prompt.id!r}: {error}"
            ) from None
        ids = tokenizer(cast(str, text), add_special_tokens=False)["input_ids"]
    else:
        ids = tokenizer(prompt.text)["input_ids"]
        if ids and ids[-1] == tokenizer.eos_token_id:  # nothing follows an end of sequence
            ids = ids[:-1]
    if not ids:
        raise DataError(f"prompt {prompt.id!r} renders to no token; give it some text")
    return tuple(cast(list[int], ids))
