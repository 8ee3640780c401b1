"""A vLLM server as we use it: what it is, what it can do, and its answers."""

import copy
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np

from tutelage.config import ServerConfig
from tutelage.errors import ServerError, UsageError
from tutelage.models.served.answers import (
    Completion,
    Floats,
    PromptScores,
    asked_scores,
    choices,
    completion,
    prompt_scores,
    scores_of,
)
from tutelage.models.served.client import MEGABYTE, BadAnswer, Client, Refused
from tutelage.types import SamplingParams

T = TypeVar("T")
Item = TypeVar("Item")

_ENTRY_BYTES = 256  # of one token in a list: id, log-probability, rank, text
_PROBE_LENGTH = 16
_MANY = 10**6  # more log-probabilities than any server gives, to hear how many it does


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a server said when it was probed."""

    version: str | None
    """Of vLLM; None where it does not tell."""
    model: str
    """Name of the served model."""
    root: str | None
    """Where the server loaded it from."""
    max_model_len: int | None
    """Tokens of prompt and completion together."""
    max_logprobs: int
    """Most log-probabilities of one token; the vocabulary's size where it gives all."""
    token_ids: bool
    """Whether it scores ids of our choice at each place."""
    weight_sync: bool
    """Whether its developer endpoints are open."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What tells one served model from another."""

    model: str
    """Its name."""
    sequence: tuple[int, ...]
    """A fixed token sequence."""
    logprobs: Floats
    """What the model says of it, after its first token."""
    spread: float
    """Most nats by which answers to it differed when it was taken."""

    def distance(self, logprobs: Floats) -> float:
        """Most nats between these log-probabilities and the model's."""
        return float(np.abs(self.logprobs - logprobs).max())

    def to_json(self) -> dict[str, Any]:
        """For the run directory."""
        return {**asdict(self), "logprobs": self.logprobs.tolist()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Fingerprint":
        """What `to_json` wrote."""
        arrays = {
            "sequence": tuple(record["sequence"]),
            "logprobs": np.array(record["logprobs"]),
        }
        return cls(**{**record, **arrays})

    @property
    def tolerance(self) -> float:
        """Nats from which it is another model."""
        return max(1e-3, 10 * self.spread)


class Server:
    """One served model."""

    def __init__(self, settings: ServerConfig, role: str) -> None:
        """Connect and choose the model.

        Raises:
            ServerError: no such server or model.
            UsageError: a key variable that is not set.
        """
        self.settings, self.role = settings, role
        self.client = Client(settings, role)
        self.model, self.root, self.max_model_len = self._choose_model()

    def hasty(self) -> "Server":
        """The same server, that gives up at the first fault."""
        other = copy.copy(self)
        other.settings = self.settings.model_copy(update={"retries": 0})
        other.client = Client(other.settings, self.role)
        return other

    # --- as one of several (fleet.py) --------------------------------------------------------

    def map(self, ask: "Callable[[Server, Item], T]", items: Sequence[Item]) -> list[T]:
        """`ask` of every item, some at once; the first fault ends all."""
        return self.client.map(lambda item: ask(self, item), items)

    def each(self, work: "Callable[[Server], T]", *, returning: bool = False) -> list[T]:
        """What `work` gets of every server: of this one."""
        return [work(self)]

    def up(self) -> frozenset[str]:
        """Addresses of the servers that are there."""
        return frozenset(self.settings.url)

    def take_retried(self) -> list[str]:
        """The faults that passed since the last call."""
        return self.client.take_retried()

    def take_events(self) -> list[str]:
        """Who left and who came back: nobody."""
        return []

    # --- questions ---------------------------------------------------------------------------

    def score(
        self, sequences: Sequence[Sequence[int]], listed: int, starts: Sequence[int] | None = None
    ) -> list[PromptScores]:
        """The `listed` most likely tokens at each place of sequences, in one request.

        `prompt_logprobs` are at temperature 1 whatever the request says (vLLM 0.32).
        """
        body = self._body(prompt=[list(s) for s in sequences], max_tokens=1, prompt_logprobs=listed)
        starts = starts or [1] * len(sequences)

        def read(answer: Any) -> list[PromptScores]:
            found = choices(answer, len(sequences))
            return [
                prompt_scores(choice, sequence, listed, start)
                for choice, sequence, start in zip(found, sequences, starts, strict=True)
            ]

        entries = sum(map(len, sequences)) * (listed + 2)
        return self.client.post("/v1/completions", body, read, MEGABYTE + entries * _ENTRY_BYTES)

    def score_ids(
        self, sequence: Sequence[int], listed: int, start: int, rows: Sequence[Sequence[int]]
    ) -> PromptScores:
        """As `score`, and log q of the ids `rows[i]` at place start + i."""
        body = {
            "model": self.model,
            "token_ids": list(sequence),
            "sampling_params": {
                "max_tokens": 1,
                "prompt_logprobs": listed,
                "prompt_logprob_token_ids": [list(row) for row in rows],
                "prompt_logprob_start": start - 1,
            },
        }

        def read(answer: Any) -> PromptScores:
            found = answer.get("prompt_logprobs") if isinstance(answer, dict) else None
            if not isinstance(found, list):
                raise BadAnswer("the answer has no prompt_logprobs")
            scores = scores_of(found, sequence, listed, start)
            return replace(scores, asked=asked_scores(answer.get("prompt_token_id_logprobs"), rows))

        entries = len(sequence) * (listed + 2) + sum(map(len, rows))
        return self.client.post(
            "/inference/v1/generate", body, read, MEGABYTE + entries * _ENTRY_BYTES
        )

    def sample(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        seed: int,
        stops: frozenset[int],
        vocabulary: int,
    ) -> Completion:
        """One completion; every sampling setting is sent, so the model's own defaults rest."""
        body = self._body(
            prompt=list(prompt),
            max_tokens=params.max_new_tokens,
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k or -1,
            min_p=0.0,
            repetition_penalty=1.0,
            presence_penalty=0.0,
            frequency_penalty=0.0,
            seed=seed,
            # The stop ids of tutelage, and no others.
            ignore_eos=True,
            stop_token_ids=sorted(i for i in stops if 0 <= i < vocabulary),
            logprobs=0,
        )

        def read(answer: Any) -> Completion:
            (choice,) = choices(answer, 1)
            return completion(choice, prompt, params.max_new_tokens, stops, vocabulary)

        limit = MEGABYTE + params.max_new_tokens * 4 * _ENTRY_BYTES
        return self.client.post("/v1/completions", body, read, limit)

    def reload_weights(self) -> None:
        """Let the server read its folder's weights anew, and forget what the old ones computed.

        Raises:
            UsageError: its developer endpoints are not open.
        """
        try:
            self.client.post("/collective_rpc", {"method": "reload_weights"}, lambda _: None)
            self.client.post("/reset_prefix_cache", {}, lambda _: None)
        except Refused as refusal:
            raise UsageError(
                f"{refusal}. Weights are synced through vLLM's developer endpoints: start the "
                "server with VLLM_SERVER_DEV_MODE=1 in its environment, on 127.0.0.1"
            ) from None

    # --- what it is --------------------------------------------------------------------------

    def fingerprint(self, vocabulary: int) -> Fingerprint:
        """Log-probabilities of a fixed sequence, alone and in company."""
        sequence = probe_sequence(vocabulary)
        company = [probe_sequence(vocabulary, i) for i in range(1, 4)]
        answers = [self.score([sequence], 0)[0], self.score([sequence, *company], 0)[0]]
        logprobs = [answer.sampled for answer in answers]
        spread = float(np.abs(logprobs[0] - logprobs[1]).max())
        return Fingerprint(self.model, sequence, logprobs[0], spread)

    def require_same(self, fingerprint: Fingerprint, logprobs: Floats) -> None:
        """Refuse answers of another model.

        Raises:
            ServerError: it is another one than at the start.
        """
        distance = fingerprint.distance(logprobs)
        if not distance <= fingerprint.tolerance:
            raise ServerError(
                f"the {self.role}'s server {self.settings.address} serves another model than when "
                "the run began: log-probabilities of a fixed sequence moved by "
                f"{distance:.3g} nats (rounding explains {fingerprint.tolerance:.3g}). Serve the "
                "model the run began with, and continue with --resume"
            )

    def max_logprobs(self) -> int:
        """Most log-probabilities it gives of one token, as it says itself."""
        try:
            self.client.post("/v1/completions", self._scoring([0, 0], _MANY), lambda _: None)
        except Refused as refusal:
            found = re.search(r"max allowed: (\d+)", refusal.said)
            if found:
                return int(found.group(1))
            raise
        return _MANY

    def scores_given_ids(self) -> bool:
        """Whether it scores token ids of our choice (vLLM's V2 model runner, on GPUs)."""
        try:
            self.score_ids([0, 0], 0, 1, [[0]])
        except (Refused, ServerError):
            return False
        return True

    def syncs_weights(self) -> bool:
        """Whether its developer endpoints are open."""
        try:
            self.client.post("/reset_prefix_cache", {}, lambda _: None)
        except (Refused, ServerError):
            return False
        return True

    def identity(self) -> dict[str, Any]:
        """What it says it is."""
        return {
            "url": self.settings.address,
            "version": self.version(),
            "model": self.model,
            "root": self.root,
            "max_model_len": self.max_model_len,
        }

    def require_answer(self, patience_s: float) -> None:
        """Look whether it answers within a moment.

        Raises:
            ServerError: it does not.
        """
        brief = self.settings.model_copy(
            update={"timeout_s": min(patience_s, self.settings.timeout_s), "retries": 0}
        )
        Client(brief, self.role).get("/v1/models", lambda answer: answer)

    def version(self) -> str | None:
        """Of vLLM, where it tells."""
        try:
            found = self.client.get("/version", lambda answer: answer)
        except (Refused, ServerError):
            return None
        version = found.get("version") if isinstance(found, dict) else None
        return version if isinstance(version, str) else None

    def capabilities(self) -> Capabilities:
        """Probe everything."""
        return Capabilities(
            version=self.version(),
            model=self.model,
            root=self.root,
            max_model_len=self.max_model_len,
            max_logprobs=self.max_logprobs(),
            token_ids=self.scores_given_ids(),
            weight_sync=self.syncs_weights(),
        )

    def _body(self, **settings: Any) -> dict[str, Any]:
        return {"model": self.model, "return_token_ids": True, "temperature": 1.0, **settings}

    def _scoring(self, sequence: Sequence[int], listed: int) -> dict[str, Any]:
        return self._body(prompt=[list(sequence)], max_tokens=1, prompt_logprobs=listed)

    def _choose_model(self) -> tuple[str, str | None, int | None]:
        def read(answer: Any) -> list[dict[str, Any]]:
            found = answer.get("data") if isinstance(answer, dict) else None
            if not isinstance(found, list) or not all(
                isinstance(m, dict) and isinstance(m.get("id"), str) for m in found
            ):
                raise BadAnswer("/v1/models lists no models; it is no OpenAI-compatible server")
            return found

        models = self.client.get("/v1/models", read)
        wanted = self.settings.model
        chosen = [m for m in models if wanted in (None, m["id"])]
        if len(chosen) != 1:
            served = ", ".join(m["id"] for m in models) or "nothing"
            raise ServerError(
                f"the {self.role}'s server {self.settings.address} serves {served}; set "
                f"{self.role}.server.model to one of them"
                + (f", not {wanted}" if wanted is not None else "")
            )
        (model,) = chosen
        root, length = model.get("root"), model.get("max_model_len")
        return (
            model["id"],
            root if isinstance(root, str) else None,
            length if isinstance(length, int) else None,
        )


def probe_sequence(vocabulary: int, which: int = 0) -> tuple[int, ...]:
    """A fixed token sequence, spread over the vocabulary."""
    digest = hashlib.blake2b(f"probe {which}".encode(), digest_size=4 * _PROBE_LENGTH).digest()
    numbers = np.frombuffer(digest, dtype="<u4")
    return tuple(int(n) % vocabulary for n in numbers)
