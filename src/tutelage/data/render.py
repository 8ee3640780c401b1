"""Prompts as the token ids a model reads.

A chat template is a program that came with a model. It runs sandboxed by transformers, and in a
process of its own that is killed where it does not end.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from typing import cast

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tutelage.config import PLACE, PromptFormat
from tutelage.data.worker_pool import WorkerPool
from tutelage.errors import DataError, UsageError
from tutelage.models.facts import Facts, own_template
from tutelage.paths import usable_path
from tutelage.types import Message, Prompt, RenderedPrompt

DEADLINE_S = 10.0
"""Processor seconds for one prompt's template."""
_CHATS = 64  # of one job


def render(
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    settings: PromptFormat,
    max_prompt_tokens: int,
    use_chat_template: bool = True,
    role: str = "student",
) -> tuple[list[RenderedPrompt], int]:
    """Token ids of each prompt, and how many prompts were too long and dropped.

    Raises:
        UsageError: chat prompts for a tokenizer without a chat template.
        DataError: a prompt that the template refuses, or that has no token.
    """
    every = render_all(prompts, tokenizer, settings, use_chat_template, role)
    kept = [
        RenderedPrompt(prompt=prompt, ids=ids)
        for prompt, ids in zip(prompts, every, strict=True)
        if len(ids) <= max_prompt_tokens
    ]
    return kept, len(prompts) - len(kept)


def render_one(
    prompt: Prompt,
    tokenizer: PreTrainedTokenizerBase,
    settings: PromptFormat,
    use_chat_template: bool = True,
    role: str = "student",
) -> tuple[int, ...]:
    """Token ids of one prompt as the model `role` reads it; as `render_all`."""
    (ids,) = render_all([prompt], tokenizer, settings, use_chat_template, role)
    return ids


def render_all(
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    settings: PromptFormat,
    use_chat_template: bool = True,
    role: str = "student",
) -> list[tuple[int, ...]]:
    """Token ids of each prompt as the model `role` reads it.

    Plain text goes through the chat template as one user turn where there is a
    template, and is tokenised as it stands where there is none.

    Raises:
        UsageError, DataError: as `render`.
    """
    prompts = [worded(prompt, settings, role) for prompt in prompts]
    template = chat_template(tokenizer, settings.chat_template, role)
    chat = next((prompt for prompt in prompts if prompt.messages), None)
    if template is None and chat is not None:
        cure = (
            "put one into its folder as chat_template.jinja"
            if role == "model"  # no part of a run
            else f"name one with {role}.chat_template"
        )
        raise UsageError(
            f"prompt {chat.id!r} is a chat, but the {role}'s tokenizer has no chat template; "
            f"use plain-text prompts, or {cure}"
        )
    chats: list[Prompt] = []
    if template is not None:
        chats = [p for p in prompts if p.messages or use_chat_template]
    texts = iter(_rendered_chats(chats, template or "", tokenizer, settings, role))
    every: list[tuple[int, ...]] = []
    for prompt in prompts:
        if template is not None and (prompt.messages or use_chat_template):
            ids = tokenizer(next(texts), add_special_tokens=False)["input_ids"]
        else:
            ids = tokenizer(prompt.text)["input_ids"]
            if ids and ids[-1] == tokenizer.eos_token_id:  # nothing follows an end of sequence
                ids = ids[:-1]
        if not ids:
            raise DataError(f"prompt {prompt.id!r} renders to no token; give it some text")
        every.append(tuple(cast(list[int], ids)))
    return every


def _rendered_chats(
    chats: Sequence[Prompt],
    template: str,
    tokenizer: PreTrainedTokenizerBase,
    settings: PromptFormat,
    role: str,
) -> list[str]:
    """The text of each chat, plain text as one user turn.

    Raises:
        DataError: a chat that the template refuses, or on which it does not end.
    """
    asked = {
        "template": template,
        "arguments": {**tokenizer.special_tokens_map, **settings.template},
        "today": None if settings.today is None else settings.today.isoformat(),
    }

    def job(part: Sequence[Prompt]) -> bytes:
        turns = [prompt.messages or (Message("user", prompt.text),) for prompt in part]
        told = {"chats": [[asdict(turn) for turn in chat] for chat in turns], **asked}
        return json.dumps(told, default=str).encode()

    parts = [chats[i : i + _CHATS] for i in range(0, len(chats), _CHATS)]
    texts: list[str] = []
    for part in parts:
        (answer,) = _templates().ask([job(part)])
        if answer is None:  # which of them does not end?
            answer = []
            for prompt in part:
                (alone,) = _templates().ask([job([prompt])])
                answer += alone or [(None, f"it has not ended after {DEADLINE_S:g} s")]
                if alone is None:
                    break
        for prompt, (text, error) in zip(part, answer, strict=False):
            if text is None:
                raise DataError(
                    f"the {role}'s chat template cannot render prompt {prompt.id!r}: {error}"
                )
            texts.append(text)
    return texts


@cache
def _templates() -> WorkerPool:
    return WorkerPool(
        "tutelage.data.template_worker",
        setting="chat templates",
        deadline_s=DEADLINE_S,
        size=1,
        quiet=True,
    )


def worded(prompt: Prompt, settings: PromptFormat, role: str) -> Prompt:
    """The prompt with the user's turn and the system turn that the settings ask for.

    Raises:
        DataError: `user_prompt` names a column that the row lacks.
    """
    turns = prompt.messages
    if settings.user_prompt is not None:
        asked = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=None)
        question = prompt.text if asked is None else turns[asked].content
        user = _filled(settings.user_prompt, prompt, question, role)
        if asked is None:
            prompt = replace(prompt, text=user)
        else:
            turns = (*turns[:asked], Message("user", user), *turns[asked + 1 :])
    if settings.system_prompt is not None:
        turns = turns or (Message("user", prompt.text),)
        kept = [turn for turn in turns if turn.role != "system"]
        turns = (Message("system", settings.system_prompt), *kept)
    return replace(prompt, messages=turns)


def chat_template(
    tokenizer: PreTrainedTokenizerBase, source: str | None, role: str = "model"
) -> str | None:
    """The Jinja text of a chat template: the tokenizer's own, a file's, or another model's.

    None where the tokenizer has none and no other is named.

    Raises:
        UsageError: the named file or folder has no template.
    """
    if source not in (None, "own"):
        return foreign_template(source, role)
    return own_template(tokenizer)


def as_rendered(facts: Facts, settings: PromptFormat) -> Facts:
    """A model's facts with the chat template that its settings name in place of its own.

    Raises:
        UsageError: as `chat_template`.
    """
    named = chat_template(facts.tokenizer, settings.chat_template, facts.role)
    return replace(facts, template=named)


@cache
def foreign_template(source: str, role: str) -> str:
    """The Jinja text of a file, or of another model's tokenizer.

    Raises:
        UsageError: there is none.
    """
    path = usable_path(source, f"{role}.chat_template")
    found: str | None = None
    try:
        if path.is_dir():
            loaded = AutoTokenizer.from_pretrained(  # nosec B615 # local
                path, local_files_only=True, trust_remote_code=False
            )
            found = chat_template(loaded, None)
        elif path.is_file():
            found = path.read_text(encoding="utf-8")
    except Exception as error:  # damaged tokenizers surface in every way
        raise UsageError(f"{role}.chat_template {source} cannot be read: {error}") from None
    if not found:
        raise UsageError(
            f"{role}.chat_template {source} names no template; give `own`, a .jinja file, or the "
            "folder of a model whose tokenizer has one"
        )
    return found


def _filled(text: str, prompt: Prompt, question: str, role: str) -> str:
    columns = {**prompt.metadata, "question": question, "answer": prompt.answer}

    def value(match: re.Match[str]) -> str:
        found = columns.get(match[1])
        if found is None:
            known = ", ".join(sorted(k for k, v in columns.items() if v is not None))
            raise DataError(
                f"{role}.user_prompt asks for {match[0]}, which prompt {prompt.id!r} lacks; it "
                f"has {known}"
            )
        return str(found)

    return PLACE.sub(value, text)
