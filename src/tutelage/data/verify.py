"""Is a completion right? 1 right, 0 wrong; None means it cannot be told."""

import importlib.util
import json
import math
import pickle  # nosec B403 # to and from our own processes
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import regex

from tutelage import config as c
from tutelage.data.final_answer import final_answer, reference_answer, same_text
from tutelage.data.sources import REASONING_GYM
from tutelage.data.worker_pool import Fault, WorkerPool
from tutelage.errors import DataError, MachineError, UsageError
from tutelage.types import Prompt, Rollout

Verify = Callable[[Prompt, str], float | None]
"""1 right, 0 wrong, None unknown, of a prompt and the text of a completion."""


class Verifier(ABC):
    """Judges completions, many at once."""

    @abstractmethod
    def many(self, pairs: Sequence[tuple[Prompt, str]]) -> list[float | None]:
        """1 right, 0 wrong, None unknown, for each prompt and completion text."""

    def has_answer(self, text: str) -> bool | None:
        """Whether a text holds a final answer in the expected form; None: no form is expected."""
        return None

    def __call__(self, prompt: Prompt, text: str) -> float | None:
        """The verdict on one completion."""
        return self.many([(prompt, text)])[0]


PATTERN_DEADLINE_S = 1.0
"""Processor seconds for one search of a pattern; a nested repetition can take for ever."""

# A minus right after a digit or a letter is no sign: `3-4`.
_NUMBER = re.compile(r"(?:(?<![^\W_])-)?(?:\d[\d,]*\.?\d*(?:[eE][-+]?\d+)?|\.\d+)")


def choose_verifier(data: c.DataConfig, prompts: Sequence[Prompt]) -> Verifier | None:
    """The configured verifier; prompts of reasoning-gym bring their own.

    Raises:
        DataError: a prompt lacks the answer that the verifier needs, or it is no number.
        UsageError: a pattern or function that cannot be used, or reasoning_gym without its prompts.
        MachineError: an extra that is not installed.
    """
    settings = verifier_settings(data)
    if settings is None:
        return None
    verify = make_verifier(settings)
    if isinstance(settings, c.ReasoningGym):
        foreign = next((p for p in prompts if "reasoning_gym" not in p.metadata), None)
        if foreign is not None:
            raise UsageError(
                f"data.verifier reasoning_gym judges reasoning_gym: prompts alone, and prompt "
                f"{foreign.id!r} is not one; choose exact, numeric, math or pattern"
            )
        return verify
    if isinstance(settings, c.Function):  # what it needs is its own affair
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


def verifier_settings(data: c.DataConfig) -> c.Verifier | None:
    """The verifier that `choose_verifier` makes, as settings."""
    if data.verifier is None and data.prompts.startswith(REASONING_GYM):
        return c.ReasoningGym()
    return data.verifier


def make_verifier(settings: c.Verifier) -> Verifier:
    """The verifier of these settings.

    Raises:
        UsageError: a pattern or a function that cannot be used.
        MachineError: an extra that is not installed.
    """
    match settings:
        case c.Exact():
            return _OneByOne(
                lambda prompt, text: float(text.strip() == (prompt.answer or "").strip())
            )
        case c.Numeric():
            return _OneByOne(_numeric, lambda text: bool(_numbers(text)))
        case c.Pattern():
            return PatternVerifier(settings)
        case c.Math():
            return MathVerifier(settings)
        case c.Function():
            return FunctionVerifier(settings)
        case c.ReasoningGym():
            return ReasoningGymVerifier(settings)


def judge(rollouts: Sequence[Rollout], verify: Verify) -> list[Rollout]:
    """The rollouts with their rewards, and whether they hold an answer where that can be said."""
    pairs = [(rollout.prompt, rollout.text) for rollout in rollouts]
    if isinstance(verify, Verifier):
        rewards = verify.many(pairs)
        answered = [verify.has_answer(text) for _, text in pairs]
    else:
        rewards = [verify(prompt, text) for prompt, text in pairs]
        answered = [None] * len(pairs)
    return [
        replace(rollout, reward=reward, has_answer=has_answer)
        for rollout, reward, has_answer in zip(rollouts, rewards, answered, strict=True)
    ]


class _OneByOne(Verifier):
    """A verdict on one completion, and the form its answer must have where there is one."""

    def __init__(self, verdict: Verify, has_answer: Callable[[str], bool] | None = None) -> None:
        self.verdict, self.form = verdict, has_answer

    def many(self, pairs: Sequence[tuple[Prompt, str]]) -> list[float | None]:
        return [self.verdict(prompt, text) for prompt, text in pairs]

    def has_answer(self, text: str) -> bool | None:
        return None if self.form is None else self.form(text)


# --- numbers and text ------------------------------------------------------------------------


def _numeric(prompt: Prompt, text: str) -> float:
    numbers = _numbers(text)
    if not numbers:
        return 0.0
    reference = _reference(prompt)
    return float(
        abs(float(numbers[-1].replace(",", "")) - reference) <= 1e-6 * max(1, abs(reference))
    )


def _numbers(text: str) -> list[str]:
    return _NUMBER.findall(_ascii_minus(text))


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


class PatternVerifier(Verifier):
    """Compares what a regular expression finds; a search that does not end is unknown.

    Raises:
        UsageError: it is no regular expression with one group.
    """

    def __init__(self, settings: c.Pattern) -> None:
        pattern = settings.pattern
        try:
            self.compiled = regex.compile(pattern)
        except regex.error as error:
            raise UsageError(
                f"data.verifier.pattern {pattern!r} is no regular expression: {error}"
            ) from None
        if self.compiled.groups != 1:
            raise UsageError(
                f"data.verifier.pattern {pattern!r} has {self.compiled.groups} groups; exactly one "
                "must capture the answer"
            )
        # A text is searched for its verdict and again for its form.
        self.found = lru_cache(maxsize=4096)(self._search)

    def many(self, pairs: Sequence[tuple[Prompt, str]]) -> list[float | None]:
        """The verdicts on prompts and completions."""
        found = [(prompt, self.found(text)) for prompt, text in pairs]
        return [None if f is None else float(f == (prompt.answer,)) for prompt, f in found]

    def has_answer(self, text: str) -> bool | None:
        """Whether the pattern is found; None where the search does not end."""
        found = self.found(text)
        return None if found is None else bool(found)

    def _search(self, text: str) -> tuple[str | None, ...] | None:
        """The group of the first match, nothing where there is none; None at the deadline."""
        try:
            match = self.compiled.search(text, timeout=PATTERN_DEADLINE_S)
        except TimeoutError:
            return None
        return () if match is None else (match.group(1),)


# --- mathematics -----------------------------------------------------------------------------


class MathVerifier(Verifier):
    """Compares final answers as mathematics, in processes that can be killed.

    Raises:
        MachineError: math-verify is not installed.
    """

    def __init__(self, settings: c.Math) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise MachineError(
                "data.verifier math needs math-verify; pip install 'tutelage[verify]'"
            )
        self.pool = WorkerPool(
            "tutelage.data.math_worker",
            setting="data.verifier math",
            deadline_s=settings.deadline_s,
            size=settings.workers,
            quiet=True,
        )

    def many(self, pairs: Sequence[tuple[Prompt, str]]) -> list[float | None]:
        """The verdicts on prompts and completions, compared in parallel.

        No final answer is wrong. None is a comparison that was stopped or failed, or a
        reference that is missing or cannot be read.
        """
        verdicts: list[float | None] = [None] * len(pairs)
        jobs: dict[int, bytes] = {}
        for place, (prompt, text) in enumerate(pairs):
            reference, found = reference_answer(prompt.answer or ""), final_answer(text)
            if not reference:
                continue
            if found is None:
                verdicts[place] = 0.0
            elif found.is_formula and same_text(reference, found.text):
                verdicts[place] = 1.0
            else:
                jobs[place] = json.dumps([reference, found.text, found.is_formula]).encode()
        compared = self.pool.ask(list(jobs.values()))
        for place, verdict in zip(jobs, compared, strict=True):
            assert not isinstance(verdict, Fault)  # it has none to tell
            verdicts[place] = verdict
        return verdicts

    def has_answer(self, text: str) -> bool | None:
        """Whether the answer is boxed, marked or all there is; an end of prose is read too."""
        found = final_answer(text)
        return found is not None and found.is_marked


# --- a function of the user ------------------------------------------------------------------


class FunctionVerifier(Verifier):
    """A function of the user, in processes that can be killed.

    Raises:
        UsageError: it cannot be found, imported or called with (prompt, text).
    """

    def __init__(self, settings: c.Function) -> None:
        where, _, name = settings.path.rpartition(":")
        self.setting = f"data.verifier.path {settings.path!r}"
        if not where or not name.isidentifier():
            raise UsageError(
                f"{self.setting} names no function; write package.module:name or file.py:name"
            )
        self.pool = WorkerPool(
            "tutelage.data.function_worker",
            settings.path,
            setting=self.setting,
            deadline_s=settings.deadline_s,
            size=settings.workers,
        )
        self.pool.start()

    def many(self, pairs: Sequence[tuple[Prompt, str]]) -> list[float | None]:
        """The verdicts on prompts and completions, judged in parallel.

        None is also a function that was stopped at its deadline or ended its process.

        Raises:
            UsageError: the function raises, or returns no verdict.
        """
        verdicts: list[float | None] = []
        told = self.pool.ask([pickle.dumps(pair) for pair in pairs])
        for (prompt, text), verdict in zip(pairs, told, strict=True):
            if isinstance(verdict, Fault):
                raise UsageError(
                    f"{self.setting} on prompt {prompt.id!r} {verdict.told}. The completion was "
                    f"{text!r:.200}"
                )
            verdicts.append(verdict)
        return verdicts


# --- reasoning-gym ---------------------------------------------------------------------------


class ReasoningGymVerifier(Verifier):
    """The scorer of each prompt's generator, in processes that can be killed.

    Raises:
        MachineError: reasoning-gym is not installed.
    """

    def __init__(self, settings: c.ReasoningGym) -> None:
        if importlib.util.find_spec("reasoning_gym") is None:
            raise MachineError(
                "reasoning_gym verification needs the package; pip install 'tutelage[verify]'"
            )
        self.threshold = settings.threshold
        self.pool = WorkerPool(
            "tutelage.data.reasoning_gym_worker",
            setting="data.verifier reasoning_gym",
            deadline_s=settings.deadline_s,
            size=settings.workers,
            quiet=True,
        )

    def many(self, pairs: Sequence[tuple[Prompt, str]]) -> list[float | None]:
        """The verdicts on prompts and completions, scored in parallel.

        None is a scorer that was stopped or failed.
        """
        scores = self.pool.ask(
            [
                pickle.dumps((p.metadata["reasoning_gym"], text.strip(), p.metadata["entry"]))
                for p, text in pairs
            ]
        )
        return [None if score is None else float(score >= self.threshold) for score in scores]
