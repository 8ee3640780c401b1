"""The settings of models: where they come from, how they read prompts, what of them learns."""

import json
import re
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from tutelage.config.base import Section
from tutelage.config.server import ServerConfig


class LocalModelConfig(Section):
    """A model that is loaded in this process."""

    path: str
    """Directory of a saved model or LoRA adapter, or owner/name on a hub."""
    revision: str | None = None
    """Branch, tag or commit on the hub; the run records the commit it stands for."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the weights."""
    device: str = "auto"
    """cpu, cuda, cuda:1; auto takes a GPU where there is one."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """How attention is computed; auto leaves it to transformers."""


PLACE = re.compile(r"\{([^\W\d]\w*)\}")
"""A column to fill in."""


class PromptFormat(Section):
    """How a model reads its prompts."""

    template: dict[str, Any] = {}
    """Arguments of the chat template, such as `enable_thinking: false`."""
    chat_template: str | None = None
    """`own`, a .jinja file, or the folder of another model whose chat template to use. A teacher
    for which neither this nor template, system_prompt or user_prompt is set reads exactly the ids
    that the student reads."""
    system_prompt: str | None = None
    """A system turn, in place of one that the row has."""
    user_prompt: str | None = None
    """The user's turn with {question}, {answer} or another column of the row filled in."""
    today: date | None = None
    """The day that a chat template is told which asks for it, such as 2026-11-25; a run records
    that of its start."""

    @field_validator("template")
    @classmethod
    def _template_gets_what_json_has(cls, template: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(template, allow_nan=False)
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(
                "its values must be text, finite numbers, true, false, null, or lists and "
                f"mappings of them ({error})"
            ) from None
        return template

    @property
    def own_prompt(self) -> bool:
        """Whether anything is said of how this model reads its prompts."""
        settings = (self.chat_template, self.system_prompt, self.user_prompt)
        return bool(self.template) or any(value is not None for value in settings)

    @property
    def columns(self) -> frozenset[str]:
        """What the user's turn shows besides the question."""
        return frozenset(PLACE.findall(self.user_prompt or "")) - {"question"}


class ModelConfig(PromptFormat, LocalModelConfig):
    """A model that has a part in a run."""

    server: ServerConfig | None = None
    """Teacher: score and sample at a server. Student: sample there, learn here."""


class LoRA(Section):
    """Train low-rank additions to frozen weights, through peft."""

    rank: PositiveInt = 16
    """Rank of each addition."""
    alpha: PositiveInt = 32
    """The addition is scaled by alpha / rank."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the layers that get one; all-linear takes every linear layer but the head."""
    merge: bool = True
    """The finished student is a plain model with the additions merged; false leaves the adapter."""

    @field_validator("target_modules", mode="before")
    @classmethod
    def _one_name(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) and value != "all-linear" else value

    @model_validator(mode="before")
    @classmethod
    def _no_dropout(cls, value: Any) -> Any:
        if isinstance(value, dict) and "dropout" in value:
            raise ValueError(
                "dropout cannot be used: the policy that is trained must be the one that sampled, "
                "so the student runs in evaluation mode, where dropout does nothing; leave it out"
            )
        return value


class StudentConfig(ModelConfig):
    """The model that learns, and which of its weights do."""

    lora: LoRA | None = None
    """None trains all weights."""
    gradient_checkpointing: bool = False
    """Keep each layer's input alone and compute the rest again in the backward pass."""


def _initial_or_model(value: object) -> object:
    if isinstance(value, str) and value != "initial":
        raise ValueError(f"{value!r} is neither `initial` nor a model; write {{path: {value}}}")
    return value


def _branch(value: object) -> str:
    return "literal['initial']" if isinstance(value, str) else "LocalModelConfig"


Reference = Annotated[
    Annotated[
        Annotated[Literal["initial"], Tag("literal['initial']")]
        | Annotated[LocalModelConfig, Tag("LocalModelConfig")],
        Discriminator(_branch),  # one branch's faults are told, not both
    ],
    BeforeValidator(_initial_or_model),
]
"""A model that an objective needs whole, so it is never served, and that reads what the student
reads: `initial` is the student as it was before the run."""
