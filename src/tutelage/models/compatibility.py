"""Can these two models be combined at all? Decided without a forward pass."""

from collections.abc import Mapping
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from tutelage.errors import UsageError
from tutelage.models.base import Teacher
from tutelage.signals import Signal


def require_same_tokens(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Refuse tokenizers in which one id stands for two tokens; equal size proves nothing.

    Raises:
        UsageError: with the count and the first disagreement.
    """
    if signal := differing_tokens(student, teacher):
        raise UsageError(f"{signal.evidence}. {signal.advice}")


def differing_tokens(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase
) -> Signal | None:
    """Ids that are not the same token on both sides, compared one by one."""
    student_tokens = {i: token for token, i in student.get_vocab().items()}
    teacher_tokens = {i: token for token, i in teacher.get_vocab().items()}
    differing = sorted(
        i
        for i in student_tokens.keys() | teacher_tokens.keys()
        if student_tokens.get(i) != teacher_tokens.get(i)
    )
    if not differing:
        return None
    first = differing[0]
    return Signal(
        name="tokens_differ",
        severity="stop",
        evidence=f"student and teacher disagree on {len(differing):,} of "
        f"{len(student_tokens.keys() | teacher_tokens.keys()):,} token ids (first: {first}, "
        f"{_show(student_tokens.get(first))} vs {_show(teacher_tokens.get(first))})",
        advice="Distillation compares ids, so both need one tokenizer: try a teacher of the same "
        "family",
    )


class Reader(Protocol):
    """Whoever reads tokens, up to some number."""

    @property
    def context(self) -> int | None:
        """Tokens it reads; None where nobody says."""
        ...


def require_context(
    model: Reader,
    role: str,
    longest_prompt: int,
    max_new_tokens: int,
    setting: str = "rollout.max_new_tokens",
    dropping: str | None = "data.max_prompt_tokens",
) -> None:
    """Refuse prompts and completions that do not fit the model's context.

    `setting` allows the new tokens; `dropping` is the one that leaves out longer prompts.

    Raises:
        UsageError: with the settings that would do.
    """
    context = model.context
    if context is None or longest_prompt + max_new_tokens <= context:
        return
    cures = []
    if longest_prompt < context:
        cures.append(f"lower {setting} to {context - longest_prompt}")
    room = context - max_new_tokens
    if dropping is not None and 2 * room >= longest_prompt:  # with less, most prompts might go
        cures.append(f"set {dropping} to {room}, which drops longer prompts and counts them")
    raise UsageError(
        f"the {role} reads {context} tokens, but the longest prompt has {longest_prompt} and "
        f"{setting} allows {max_new_tokens} more; "
        + (", or ".join(cures) or f"lower {setting}, and shorten the prompts")
    )


def share_vocabulary(models: Mapping[str, Teacher]) -> None:
    """Let all sides, given by their roles, use the ids that every head has.

    The rest pads the larger heads.

    Raises:
        UsageError: a tokenizer has an id beyond a head's rows.
    """
    short = min(models, key=lambda role: models[role].vocabulary)
    rows = models[short].vocabulary
    largest = max(max(m.tokenizer.get_vocab().values(), default=-1) for m in models.values())
    if largest >= rows:
        raise UsageError(
            f"the tokenizer has ids up to {largest}, but the {short}'s head has only {rows} rows, "
            "so it can neither read nor predict the rest; this checkpoint and this tokenizer do "
            "not belong together"
        )
    for model in models.values():
        model.vocabulary = rows


def _show(token: str | None) -> str:
    return "nothing" if token is None else repr(token)
