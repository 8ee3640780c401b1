"""What two models say of themselves without their weights, and where they disagree."""

import hashlib
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from tutelage.config import ModelConfig
from tutelage.errors import UsageError
from tutelage.models.checkpoints import open_folder
from tutelage.models.compatibility import differing_tokens
from tutelage.models.loading import load_tokenizer, stop_ids_of_folder
from tutelage.signals import Signal

_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A model as its folder and its settings describe it."""

    role: str
    """Who it is, as the settings call it."""
    tokenizer: PreTrainedTokenizerBase
    """Its tokenizer."""
    stop_ids: frozenset[int]
    """Ids that end a completion."""
    rows: int | None
    """Rows of its head, padding included; None where its config does not say."""
    context: int | None
    """Tokens it reads; None where its config does not say."""
    dtype: str | None
    """Of its weights once loaded; None for a model at a server."""
    template: str | None
    """Text of its own chat template."""
    own_prompt: bool
    """Whether it reads another prompt than the student."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without what is unknown."""
        told = {
            "stop_ids": sorted(self.stop_ids),
            "tokens": len(self.tokenizer.get_vocab()),
            "rows": self.rows,
            "context": self.context,
            "dtype": self.dtype,
            "chat_template_sha256": None
            if self.template is None
            else hashlib.sha256(self.template.encode()).hexdigest(),
        }
        return {key: value for key, value in told.items() if value is not None}


def facts_of(
    settings: ModelConfig, role: str, tokenizer: PreTrainedTokenizerBase | None = None
) -> Facts:
    """Read a model's folder; `tokenizer` spares loading it a second time.

    Raises:
        UsageError: a folder, a config or a tokenizer that cannot be read.
    """
    tokenizer = tokenizer or load_tokenizer(settings, role)
    folder = open_folder(settings.path, role, settings.revision, weights=False)
    return Facts(
        role=role,
        tokenizer=tokenizer,
        stop_ids=stop_ids_of_folder(settings, role, tokenizer),
        rows=folder.number("vocab_size"),
        context=folder.number(*_CONTEXT),
        dtype=None if settings.server is not None else settings.dtype,
        template=own_template(tokenizer),
        own_prompt=settings.own_prompt,
    )


def own_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The Jinja text of a tokenizer's default chat template; None where it has none.

    Raises:
        UsageError: it is no text.
    """
    own: Any = getattr(tokenizer, "chat_template", None)
    own = own.get("default") if isinstance(own, dict) else own
    if own is not None and not isinstance(own, str):
        raise UsageError(f"the chat template of {tokenizer.name_or_path} is no text: {own!r:.80}")
    return own


def disagreements(student: Facts, teacher: Facts) -> list[Signal]:
    """Where a pair differs; `stop` where it cannot be combined at all."""
    found = (
        differing_tokens(student.tokenizer, teacher.tokenizer),
        _rows(student, teacher),
        _stops(student, teacher),
        _templates(student, teacher),
        _vocabularies(student, teacher),
        _precisions(student, teacher),
    )
    return [signal for signal in found if signal is not None]


def _rows(student: Facts, teacher: Facts) -> Signal | None:
    largest = max(max(s.tokenizer.get_vocab().values(), default=-1) for s in (student, teacher))
    short = [s for s in (student, teacher) if s.rows is not None and s.rows <= largest]
    if not short:
        return None
    side = short[0]
    return Signal(
        name="head_too_short",
        severity="stop",
        evidence=f"the tokenizer has ids up to {largest}, but the {side.role}'s head has only "
        f"{side.rows} rows",
        advice="checkpoint and tokenizer do not belong together; copy both from one model",
    )


def _stops(student: Facts, teacher: Facts) -> Signal | None:
    if student.stop_ids == teacher.stop_ids:
        return None
    return Signal(
        name="stop_ids_differ",
        severity="warning",
        evidence=f"the {student.role} stops at the ids {sorted(student.stop_ids)}, the "
        f"{teacher.role} at {sorted(teacher.stop_ids)}",
        advice="where the teacher never stops as the student does, it pulls the student's "
        "completions longer; give both the same eos_token_id in generation_config.json, or start "
        "from a student that ends as the teacher does",
    )


def _templates(student: Facts, teacher: Facts) -> Signal | None:
    if teacher.own_prompt or student.template == teacher.template or teacher.template is None:
        return None
    return Signal(
        name="templates_differ",
        severity="warning",
        evidence=f"the chat templates of {student.role} and {teacher.role} differ, and the "
        f"{teacher.role} reads prompts as the student's template renders them",
        advice=f"see both with tutelage preview; {teacher.role}.chat_template: own lets it read "
        "its own",
    )


def _vocabularies(student: Facts, teacher: Facts) -> Signal | None:
    if student.rows == teacher.rows or student.rows is None or teacher.rows is None:
        return None
    return Signal(
        name="vocabularies_differ",
        severity="warning",
        evidence=f"the {student.role}'s head has {student.rows} rows, the {teacher.role}'s "
        f"{teacher.rows}",
        advice="the rows that only one side has are left out of both; nothing need be done where "
        "they only pad",
    )


def _precisions(student: Facts, teacher: Facts) -> Signal | None:
    if None in (student.dtype, teacher.dtype) or student.dtype == teacher.dtype:
        return None
    return Signal(
        name="precisions_differ",
        severity="warning",
        evidence=f"the {student.role}'s weights are {student.dtype}, the {teacher.role}'s "
        f"{teacher.dtype}",
        advice="differences of a few hundredths of a nat a token are then rounding; "
        f"{teacher.role}.dtype: {student.dtype} takes it away",
    )
