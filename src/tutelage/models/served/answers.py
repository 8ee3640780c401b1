"""What vLLM's answers say, checked against what was asked; no defaults, nothing filled in."""

import base64
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.models.served.client import BadAnswer
from tutelage.types import FinishReason

# vLLM writes -9999 where a log-probability is minus infinity.
IMPOSSIBLE = -9999.0
# How far rounding may lift a log-probability above 0, or a list's mass above 1.
_ROUNDING = 1e-3
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '<(f[248])', 'fortran_order': False, "
    rb"'shape': \((\d{1,9}), (\d{1,9})\), \} *\n",
    re.DOTALL,
)

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptScores:
    """A model's view of one token sequence, from the token after `start` on: T tokens."""

    sampled: Floats
    """[T]: log q of the tokens that stand there, nats."""
    ids: Ids
    """[T, K]: the K most likely tokens, most likely first, equals by id."""
    logprobs: Floats
    """[T, K]: log q of them."""
    asked: Floats | None = None
    """[T, A]: log q of the ids that were asked about, NaN where a row was shorter."""
    decoded: Mapping[int, str]
    """Text of tokens that stand there, as the server decodes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What the server sampled."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """At temperature 1, whatever the request's was."""
    finish_reason: FinishReason


def choices(answer: Any, count: int) -> list[dict[str, Any]]:
    """The `count` choices of a completion, in the order of the prompts."""
    found: list[Any] = _member(answer, "choices", list)
    if not all(isinstance(choice, dict) for choice in found):
        raise BadAnswer("a choice is not an object")
    if [choice.get("index") for choice in found] != list(range(count)):
        raise BadAnswer(
            f"it answers for the prompts {[c.get('index') for c in found]}, and "
            f"{count} were asked, in order"
        )
    return found


def prompt_scores(
    choice: Mapping[str, Any], sequence: Sequence[int], listed: int, start: int = 1
) -> PromptScores:
    """Log-probabilities of `sequence[start:]`, with the `listed` most likely at each place.

    Args:
        choice: one of the answer's.
        sequence: the token ids that were sent.
        listed: how many tokens each place must list.
        start: first place that counts; at least 1, since nothing predicts the first token.

    Raises:
        BadAnswer: other tokens, another length, or numbers that are no log-probabilities.
    """
    if choice.get("prompt_token_ids") != list(sequence):
        raise BadAnswer("it repeats other token ids than were sent, or none")
    return scores_of(_member(choice, "prompt_logprobs", list), sequence, listed, start)


def scores_of(
    places: Sequence[Any], sequence: Sequence[int], listed: int, start: int
) -> PromptScores:
    """As `prompt_scores`, from the list `prompt_logprobs` itself."""
    if len(places) != len(sequence):
        raise BadAnswer(f"it scores {len(places)} of {len(sequence)} tokens")
    if places[0] is not None:
        raise BadAnswer("it scores the first token, which nothing predicts: the list is shifted")
    count = len(sequence) - start
    sampled = np.empty(count)
    ids = np.empty((count, listed), dtype=np.int64)
    logprobs = np.empty((count, listed))
    decoded: dict[int, str] = {}
    for row, place in enumerate(range(start, len(sequence))):
        entries, token = places[place], sequence[place]
        if not isinstance(entries, dict):
            raise BadAnswer(f"token {place} has no log-probabilities")
        try:
            found = {int(key): entry["logprob"] for key, entry in entries.items()}
        except (TypeError, ValueError, LookupError):
            raise BadAnswer(f"the log-probabilities of token {place} are misshapen") from None
        if token not in found:
            raise BadAnswer(
                f"token {place} is id {token}, which is not among the scored "
                f"{sorted(found)[:5]}...: the list is shifted, or of another sequence"
            )
        for id_, value in found.items():
            _require_logprob(value, id_, place)
        if not listed <= len(found) <= listed + 1:
            raise BadAnswer(f"token {place} lists {len(found)} tokens, and {listed} were asked")
        best = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:listed]
        sampled[row] = found[token]
        if listed:
            ids[row], logprobs[row] = zip(*best, strict=True)
        text = entries[str(token)].get("decoded_token")
        if isinstance(text, str):
            decoded[token] = text
    mass = np.exp(logprobs).sum(-1)
    if (mass > 1 + _ROUNDING).any():
        raise BadAnswer(f"the listed tokens of one place hold a mass of {mass.max():.4g}")
    return PromptScores(sampled=sampled, ids=ids, logprobs=logprobs, decoded=decoded)


def asked_scores(encoded: Any, rows: Sequence[Sequence[int]]) -> Floats:
    """Log-probabilities of the ids asked at each place, from vLLM's base64 of a .npy array.

    Raises:
        BadAnswer: another shape, or numbers that are no log-probabilities.
    """
    if not isinstance(encoded, str):
        raise BadAnswer("it gives no log-probabilities of the token ids that were asked about")
    try:
        content = base64.b64decode(encoded, validate=True)
    except ValueError:
        raise BadAnswer("the log-probabilities of asked ids are not base64") from None
    header = _NPY.match(content)  # not np.load, which reads far more than this
    if header is None:
        raise BadAnswer("the log-probabilities of asked ids are no .npy table of numbers")
    shape, kind = (int(header[2]), int(header[3])), np.dtype(f"<{header[1].decode()}")
    wanted = (len(rows), max(map(len, rows)))
    if shape != wanted or len(content) - header.end() != kind.itemsize * shape[0] * shape[1]:
        raise BadAnswer(f"the log-probabilities of asked ids have shape {shape}, not {wanted}")
    found = np.frombuffer(content, kind, offset=header.end()).reshape(shape)
    scores: Floats = found.astype(np.float64)
    for place, ids in enumerate(rows):
        for slot, id_ in enumerate(ids):
            _require_logprob(float(scores[place, slot]), id_, place)
        scores[place, len(ids) :] = np.nan
    return scores


def completion(
    choice: Mapping[str, Any],
    prompt: Sequence[int],
    limit: int,
    stops: frozenset[int],
    vocabulary: int,
) -> Completion:
    """What was sampled after `prompt`.

    Raises:
        BadAnswer: no token ids, too many, ids beyond the vocabulary, or an end that is neither
            a stop id nor the limit.
    """
    if choice.get("prompt_token_ids") != list(prompt):
        raise BadAnswer("it repeats other prompt ids than were sent, or none")
    ids = _member(choice, "token_ids", list)
    reason = choice.get("finish_reason")
    if not all(isinstance(i, int) and 0 <= i < vocabulary for i in ids):
        raise BadAnswer(
            f"it sampled ids up to {max(ids, default=0, key=str)}, and the student's vocabulary "
            f"has {vocabulary}"
        )
    if not 0 < len(ids) <= limit:
        raise BadAnswer(f"it sampled {len(ids)} tokens, and 1 to {limit} were asked")
    ended = ids[-1] in stops
    if any(i in stops for i in ids[:-1]):
        raise BadAnswer("it went on after a stop id, so it does not heed stop_token_ids")
    if not ((reason == "stop" and ended) or (reason == "length" and len(ids) == limit)):
        raise BadAnswer(
            f"it ended by {reason!r} after {len(ids)} of {limit} tokens "
            f"{'at' if ended else 'without'} a stop id"
        )
    logprobs = _member(_member(choice, "logprobs", dict), "token_logprobs", list)
    if len(logprobs) != len(ids):
        raise BadAnswer(f"it gives {len(logprobs)} log-probabilities of {len(ids)} tokens")
    for place, (id_, value) in enumerate(zip(ids, logprobs, strict=True)):
        _require_logprob(value, id_, place)
    return Completion(
        ids=tuple(ids),
        logprobs=tuple(map(float, logprobs)),
        finish_reason="stop" if ended else "length",
    )


def _require_logprob(value: Any, id_: int, place: int) -> None:
    if not isinstance(value, int | float) or not IMPOSSIBLE < value <= _ROUNDING:
        said = "minus infinity" if _is_impossible(value) else value
        raise BadAnswer(f"the log-probability of id {id_} at token {place} is {said}")


def _is_impossible(value: Any) -> bool:
    return isinstance(value, int | float) and (math.isinf(value) or value <= IMPOSSIBLE)


def _member(value: Any, name: str, kind: type) -> Any:
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, kind):
        raise BadAnswer(f"the answer has no {name}")
    return found
