"""Is a completion right? Answers are judged one at a time; None means it cannot be told."""

import math
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

from tutelage import config as c
from tutelage.data.prompts import REASONING_GYM
from tutelage.errors import DataError, MachineError, UsageError
from tutelage.types import Prompt

Verify = Callable[[Prompt, str], float | None]
# A minus right after a digit or a letter is no sign: `3-4`.
_NUMBER = re.compile(r"(?:(?<![^\W_])-)?(?:\d[\d,]*\.?\d*(?:[eE][-+]?\d+)?|\.\d+)")


def choose_verifier(data: c.DataConfig, prompts: Sequence[Prompt]) -> Verify | None:
    """The configured verifier; prompts of reasoning-gym bring their own.

    Raises:
        DataError: a prompt lacks the answer that the verifier needs, or it is no number.
        UsageError: a pattern that cannot be used, or reasoning_gym without its prompts.
    """
    settings = data.verifier
    if settings is None and data.prompts.startswith(REASONING_GYM):
        settings = c.ReasoningGym()
    if settings is None:
        return None
    verify = make_verifier(settings)
    if isinstance(settings, c.ReasoningGym):
        foreign = next((p for p in prompts if "reasoning_gym" not in p.metadata), None)
        if foreign is not None:
            raise UsageError(
                f"data.verifier reasoning_gym judges reasoning_gym: prompts alone, and prompt "
                f"{foreign.id!r} is not one; choose exact, numeric or pattern"
            )
        return verify
    missing = [p.id for p in prompts if p.answer is None]
    if missing:
        raise DataError(
            f"data.verifier {settings.type} needs an answer column, and {len(missing)} of "
            f"{len(prompts)} prompts have none (first: {missing[0]!r}); add `answer`, or leave "
            "data.verifier out"
        )
    if isinstance(settings, c.Numeric):
        for prompt in prompts:
            _reference(prompt)
    return verify


def make_verifier(settings: c.Verifier) -> Verify:
    """A function from (prompt, completion text) to 1 right, 0 wrong, None unknown."""
    match settings:
        case c.Exact():
            return lambda prompt, text: float(text.strip() == (prompt.answer or "").strip())
        case c.Numeric():
            return _numeric
        case c.Pattern(pattern=pattern):
            try:
                compiled = re.compile(pattern)
            except re.error as error:
                raise UsageError(
                    f"data.verifier.pattern {pattern!r} is no regular expression: {error}"
                ) from None
            if compiled.groups != 1:
                raise UsageError(
                    f"data.verifier.pattern {pattern!r} has {compiled.groups} groups; exactly one "
                    "must capture the answer"
                )
            return lambda prompt, text: _pattern(compiled, prompt, text)
        case c.ReasoningGym(threshold=threshold):
            return lambda prompt, text: _reasoning_gym(prompt, text, threshold)


def _numeric(prompt: Prompt, text: str) -> float:
    numbers = _NUMBER.findall(_ascii_minus(text))
    if not numbers:
        return 0.0
    reference = _reference(prompt)
    return float(
        abs(float(numbers[-1].replace(",", "")) - reference) <= 1e-6 * max(1, abs(reference))
    )


def _reference(prompt: Prompt) -> float:
    try:
        reference = float(_ascii_minus(prompt.answer or "").replace(",", ""))
    except ValueError:
        reference = math.nan
    if not math.isfinite(reference):
        raise DataError(
            f"prompt {prompt.id!r} has the answer {prompt.answer!r}, which is no number; "
            "data.verifier numeric cannot judge it"
        )
    return reference


def _ascii_minus(text: str) -> str:
    return text.replace("\N{MINUS SIGN}", "-")


def _pattern(compiled: re.Pattern[str], prompt: Prompt, text: str) -> float:
    found = compiled.search(text)
    return float(found is not None and found.group(1) == prompt.answer)


def _reasoning_gym(prompt: Prompt, text: str, threshold: float) -> float:
    entry: dict[str, Any] = prompt.metadata["entry"]
    scorer = _scorer(prompt.metadata["reasoning_gym"])
    return float(scorer(answer=text.strip(), entry=entry) >= threshold)


@cache
def _scorer(name: str) -> Callable[..., float]:
    try:
        from reasoning_gym import get_score_answer_fn
    except ImportError:
        raise MachineError(
            "reasoning_gym verification needs the package; pip install 'tutelage[verify]'"
        ) from None
    return cast(Callable[..., float], get_score_answer_fn(name))
