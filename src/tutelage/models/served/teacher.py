"""A teacher behind a server: it says some tokens' log-probabilities, or all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tutelage import config as c
from tutelage.config import ModelConfig
from tutelage.errors import ServerError, UsageError
from tutelage.models.anatomy import decode_text
from tutelage.models.checkpoints import open_folder
from tutelage.models.loading import load_tokenizer, stop_ids_of_folder
from tutelage.models.served.answers import PromptScores
from tutelage.models.served.cache import ScoreCache
from tutelage.models.served.fleet import Fleet, connect
from tutelage.models.served.sampling import sample
from tutelage.models.served.server import Capabilities, Fingerprint, Server
from tutelage.ops.support import isin_rows, top_k_ids
from tutelage.paths import usable_path
from tutelage.types import Batch, RenderedPrompt, Rollout, SamplingParams, TokenScores

# Vocabularies of which every log-probability is asked: a larger one would cost megabytes a token.
COMPLETE = 1024
_SEQUENCES = 8  # of one request, besides the probe that proves whose answer it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of the server at every state."""

    listed: int
    """How many of the teacher's own most likely tokens."""
    complete: bool
    """Whether those are all, so that the answer is the full distribution."""
    support: str = "teacher"
    """The objective's support: `sampled` for none, else as `objective.support`."""
    k: int = 0
    """Its size."""

    @property
    def asks_ids(self) -> bool:
        """Whether the student's own tokens are asked about."""
        return not self.complete and self.support in ("student", "union", "symmetric_difference")


@dataclass
class ServedTeacher:
    """A `Sampler`, and what `gradient` asks for scores."""

    server: Server | Fleet
    """Where it is served."""
    tokenizer: PreTrainedTokenizerBase
    """From the teacher's folder."""
    stop_ids: frozenset[int]
    """From the teacher's folder."""
    vocabulary: int
    """Token ids in use."""
    rows: int
    """Ids the served model knows, padding of its head included."""
    capabilities: Capabilities
    """What the server said it can do."""
    fingerprint: Fingerprint
    """What tells it from another."""
    temperature: float = 1.0
    """Temperature of the log-probabilities it gives."""
    batch_size: int = 0
    """Not used: the server makes its own batches."""
    ignored: tuple[str, ...] = ()
    """Not known of a served model."""
    question: Question = Question(listed=0, complete=False)
    """What is asked; `prepare_for` decides."""
    cache: ScoreCache | None = None
    """Scores on disk."""

    @property
    def context(self) -> int | None:
        """Tokens it reads; the server needs room for one more."""
        length = self.capabilities.max_model_len
        return None if length is None else length - 1

    def prepare_for(self, objective: c.Objective, metrics_k: int) -> None:
        """Decide what to ask, once all sides' vocabulary is known.

        Raises:
            UsageError: the server cannot serve this objective.
        """
        most = self.capabilities.max_logprobs
        if self.gives_all:
            self.question = Question(listed=self.rows, complete=True)
            return
        require_servable(objective, self)
        support, k = "sampled", 0
        if isinstance(objective, c.TopK):
            support, k = objective.support, objective.k
        # One more than the overlap's k, to see near ties.
        wanted = min(max(k, metrics_k + 1), self.rows)
        self.question = Question(listed=min(wanted, most), complete=False, support=support, k=k)

    @property
    def gives_all(self) -> bool:
        """Whether the server gives every token's log-probability, and it is asked for them."""
        return self.capabilities.max_logprobs >= self.rows and self.rows <= COMPLETE

    def asked_for(self, k: int) -> "ServedTeacher":
        """The same teacher, asked for all it can say of each state, k tokens at least.

        That is the full distribution of a small vocabulary, else as many tokens as it lists, and
        where it scores given ids the student's k as well.
        """
        most = min(self.capabilities.max_logprobs, self.rows)
        if self.gives_all:
            return replace(self, question=Question(listed=self.rows, complete=True))
        if self.capabilities.token_ids:
            k = min(k, self.vocabulary)
            question = Question(listed=min(most, k), complete=False, support="union", k=k)
        else:
            question = Question(listed=min(most, COMPLETE), complete=False, support="teacher")
        return replace(self, question=question)

    def judge(self, batch: Batch, propose: Callable[[int], Tensor]) -> "ServedJudgement":
        """Ask the server about the states of a batch.

        Args:
            batch: whose scored tokens are the states.
            propose: the student's k most likely tokens [N, k]; called only where the objective's
                support asks about them.

        Raises:
            ServerError: no good answer.
        """
        sequences, starts = _sequences(batch)
        asked: list[list[list[int]]] | None = None
        if self.question.asks_ids:
            ids = propose(self.question.k).cpu()
            asked = [ids[batch.rows == row].tolist() for row in range(len(sequences))]
        scores = self._scores(sequences, starts, asked)
        return ServedJudgement(self, batch, scores, ids if asked is not None else None)

    def sample(
        self,
        prompts: Sequence[RenderedPrompt],
        params: SamplingParams,
        *,
        group_size: int = 1,
        seed: int,
        step: int,
        only: Callable[[str, int], bool] = lambda prompt_id, index: True,
    ) -> list[Rollout]:
        """`group_size` rollouts of each prompt, prompt by prompt."""
        return sample(
            self.server,
            prompts,
            params,
            group_size=group_size,
            seed=seed,
            step=step,
            only=only,
            stops=self.stop_ids,
            vocabulary=self.vocabulary,
            decode=lambda ids: decode_text(self.tokenizer, ids),
            policy_step=0,
        )

    def _scores(
        self,
        sequences: Sequence[tuple[int, ...]],
        starts: Sequence[int],
        asked: list[list[list[int]]] | None,
    ) -> list[PromptScores]:
        listed = self.question.listed
        keys = [
            ScoreCache.key(sequence, start, listed, None if asked is None else asked[i])
            for i, (sequence, start) in enumerate(zip(sequences, starts, strict=True))
        ]
        found = [None if self.cache is None else self.cache.get(key) for key in keys]
        missing = [i for i, scores in enumerate(found) if scores is None]
        if missing and asked is not None:
            self._verify()  # these answers come without a probe of their own
        groups = (
            [[i] for i in missing]
            if asked is not None
            else [missing[i : i + _SEQUENCES] for i in range(0, len(missing), _SEQUENCES)]
        )

        def ask(server: Server, group: list[int]) -> list[PromptScores]:
            if asked is not None:
                (i,) = group
                return [server.score_ids(sequences[i], listed, starts[i], asked[i])]
            probe = self.fingerprint.sequence
            answers = server.score(
                [*(sequences[i] for i in group), probe], listed, [*(starts[i] for i in group), 1]
            )
            server.require_same(self.fingerprint, answers.pop().sampled)
            return answers

        for group, answers in zip(groups, self.server.map(ask, groups), strict=True):
            for i, scores in zip(group, answers, strict=True):
                found[i] = scores
                if self.cache is not None:
                    self.cache.put(keys[i], scores)
        return [scores for scores in found if scores is not None]

    def _verify(self) -> None:
        self.server.each(partial(prove_same, self.fingerprint))


class ServedJudgement:
    """A server's scores of a batch's states, chunk by chunk."""

    def __init__(
        self,
        teacher: ServedTeacher,
        batch: Batch,
        scores: Sequence[PromptScores],
        asked_ids: Tensor | None,
    ) -> None:
        self.teacher, self.asked_ids = teacher, asked_ids
        self.sampled = _packed([s.sampled for s in scores])
        self.ids = torch.from_numpy(np.concatenate([s.ids for s in scores]))
        self.logprobs = _packed([s.logprobs for s in scores])
        self.asked = (
            None if asked_ids is None else _packed([s.asked for s in scores if s.asked is not None])
        )
        if len(self.sampled) != len(batch.targets):
            raise ServerError(
                f"the teacher's server scored {len(self.sampled)} of {len(batch.targets)} tokens"
            )

    def at(self, rows: slice, student: Tensor) -> Tensor | TokenScores:
        """log q of these states: all of it [n, V], or what the server gave.

        Args:
            rows: which states.
            student: log p [n, V] there.
        """
        question = self.teacher.question
        if question.complete:
            ids, logprobs = self.ids[rows].to(student.device), self.logprobs[rows].to(student)
            full = torch.full((len(ids), self.teacher.rows), -torch.inf).to(student)
            full.scatter_(-1, ids, logprobs)
            return (full[:, : student.shape[-1]] / self.teacher.temperature).log_softmax(-1)
        return self.on_support(rows, student, question.support, question.k)

    def on_support(self, rows: slice, student: Tensor, support: str, k: int) -> TokenScores:
        """What the server gave of these states, for an objective's support of size k.

        Where the support holds tokens of the student's, they must have been asked about, and k
        must not exceed the question's.
        """
        ids, logprobs = self._listed(rows, student)
        chosen, chosen_logprobs, mask = self._support(rows, student, support, k, ids, logprobs)
        return TokenScores(
            sampled=self.sampled[rows].to(student),
            ids=chosen,
            logprobs=chosen_logprobs,
            mask=mask,
            likely_ids=ids,
            likely_logprobs=logprobs,
        )

    def known(self, rows: slice, student: Tensor) -> tuple[Tensor, Tensor]:
        """Ids [n, M] and log q of all tokens listed or asked about at these states."""
        ids, logprobs = self._listed(rows, student)
        if self.asked_ids is not None and self.asked is not None:
            ids = torch.cat([ids, self.asked_ids[rows].to(ids)], -1)
            logprobs = torch.cat([logprobs, self.asked[rows].to(logprobs)], -1)
        return ids, logprobs

    def _listed(self, rows: slice, student: Tensor) -> tuple[Tensor, Tensor]:
        ids, logprobs = self.ids[rows].to(student.device), self.logprobs[rows].to(student)
        vocabulary = student.shape[-1]
        if (ids >= vocabulary).any():
            raise ServerError(
                f"the teacher finds id {int(ids.max())} likely, and the student's vocabulary ends "
                f"at {vocabulary - 1}: the served model is not of the student's family"
            )
        return ids, logprobs

    def _support(
        self, rows: slice, student: Tensor, support: str, k: int, ids: Tensor, logprobs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ids, logprobs = ids[:, :k], logprobs[:, :k]
        everything = torch.ones_like(ids, dtype=torch.bool)
        if support in ("teacher", "sampled"):
            return ids, logprobs, everything
        if support == "intersection":
            return ids, logprobs, isin_rows(ids, top_k_ids(student, k))
        assert self.asked_ids is not None
        assert self.asked is not None
        own = self.asked_ids[rows, :k].to(ids.device)
        own_logprobs = self.asked[rows, :k].to(logprobs)
        everything = torch.ones_like(own, dtype=torch.bool)
        if support == "student":
            return own, own_logprobs, everything
        new = ~isin_rows(own, ids)
        alone = ~isin_rows(ids, own) if support == "symmetric_difference" else ids >= 0
        return (
            torch.cat([ids, own], dim=-1),
            torch.cat([logprobs, own_logprobs], dim=-1),
            torch.cat([alone, new], dim=-1),
        )


def load_served_teacher(settings: ModelConfig, role: str = "teacher") -> ServedTeacher:
    """The model at `settings.server`, with the tokenizer and stop ids of `settings.path`.

    Raises:
        UsageError: a folder without tokenizer, or a key variable that is not set.
        ServerError: a server that does not answer, or does not decode as the tokenizer does.
    """
    assert settings.server is not None
    folder = open_folder(settings.path, role, weights=False)
    tokenizer = load_tokenizer(settings, role)
    rows = folder.vocabulary or len(tokenizer)
    server = connect(settings.server, role)
    fingerprint = server.fingerprint(rows)
    if isinstance(server, Fleet):
        server.prove = partial(prove_same, fingerprint)
    require_same_text(server, fingerprint, tokenizer)
    teacher = ServedTeacher(
        server=server,
        tokenizer=tokenizer,
        stop_ids=stop_ids_of_folder(settings, role, tokenizer),
        vocabulary=rows,
        rows=rows,
        capabilities=server.capabilities(),
        fingerprint=fingerprint,
    )
    if settings.server.cache is not None:
        path = usable_path(settings.server.cache, "server.cache")
        teacher.cache = ScoreCache(path, fingerprint, settings.server.cache_mb)
    return teacher


def prove_same(fingerprint: Fingerprint, server: Server) -> None:
    """Ask a server for the fixed sequence.

    Raises:
        ServerError: it is another model, or does not answer.
    """
    server.require_same(fingerprint, server.score([fingerprint.sequence], 0)[0].sampled)


def require_servable(
    objective: c.Objective,
    teacher: ServedTeacher,
    instead: str = "use objective top_k with support teacher, or sampled",
) -> None:
    """Refuse what needs more of the teacher than its server gives; `instead` says what works.

    Raises:
        UsageError: naming the setting or the server's flag that works.
    """
    most, able = teacher.capabilities.max_logprobs, teacher.capabilities.token_ids
    if teacher.rows <= COMPLETE:
        instead = (
            f"start the server with --max-logprobs {teacher.rows} to get all of it, or {instead}"
        )
    if teacher.temperature != 1.0:
        raise UsageError(
            f"rollout.temperature is {teacher.temperature:g}, and the teacher's server gives "
            "log-probabilities at temperature 1 whatever it is asked, of which a list cannot be "
            "rescaled; use temperature: 1"
            + (
                f", or start the server with --max-logprobs {teacher.rows}"
                if teacher.rows <= COMPLETE
                else ""
            )
        )
    needs = {
        "objective.type full": isinstance(objective, c.Full),
        f"objective.target {objective.target.type}": not isinstance(
            objective.target, c.TeacherTarget
        ),
        f"objective.weight {objective.weight.type}": isinstance(
            objective.weight,
            c.TeacherEntropyWeight | c.ReliabilityWeight | c.TipWeight | c.TeachabilityWeight,
        ),
        "objective.baseline kl": isinstance(getattr(objective, "baseline", None), c.KLBaseline),
        "objective.divergence mix with a ramp": isinstance(
            getattr(objective, "divergence", None), c.Mix
        )
        and getattr(objective.divergence, "ramp", None) is not None,
    }
    for setting, needed in needs.items():
        if needed:
            raise UsageError(
                f"{setting} needs the teacher's whole distribution, and its server gives at most "
                f"{most} of {teacher.rows:,} log-probabilities a token; {instead}"
            )
    if not isinstance(objective, c.TopK):
        return
    if objective.support in ("student", "union", "symmetric_difference") and not able:
        raise UsageError(
            f"objective.support {objective.support} needs the teacher's log-probabilities of the "
            "student's tokens, and its server scores only its own most likely ones (vLLM scores "
            "given ids on GPUs, with VLLM_USE_V2_MODEL_RUNNER=1 and --enable-scale-out); "
            f"{instead}"
        )
    if objective.k > most:
        raise UsageError(
            f"objective.k is {objective.k}, and the teacher's server gives at most {most} "
            f"log-probabilities a token; start it with --max-logprobs {objective.k}, or lower k"
        )


def require_same_text(
    server: Server | Fleet, fingerprint: Fingerprint, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Refuse a server whose tokens read otherwise than the teacher's folder says.

    Raises:
        ServerError: with the first that differs.
    """
    served = server.score([fingerprint.sequence], 0)[0].decoded
    own = {i: decode_text(tokenizer, [i], special=True) for i in served}
    # Parts of a character have no text of their own, and white space is shown in many ways.
    comparable = [
        i
        for i in served
        if "\ufffd" not in served[i] + own[i] and served[i].strip() and own[i].strip()
    ]
    differing = [i for i in comparable if served[i].strip() != own[i].strip()]
    if 4 * len(differing) > len(comparable):
        first = differing[0]
        raise ServerError(
            f"the {server.role}'s server {server.settings.address} reads id {first} as "
            f"{served[first]!r}, and the tokenizer in {server.role}.path as {own[first]!r} "
            f"({len(differing)} of {len(comparable)} tried ids differ): it serves a model with "
            "another tokenizer"
        )


def _sequences(batch: Batch) -> tuple[list[tuple[int, ...]], list[int]]:
    """Token ids of each row up to its last scored token, and the place of its first."""
    sequences, starts = [], []
    for ids, mask, scored in zip(
        batch.input_ids, batch.attention_mask, batch.loss_mask, strict=True
    ):
        sequences.append(tuple(ids[mask.bool()].tolist()))
        places = scored.nonzero().squeeze(-1)
        starts.append(int(places[0]) + 1 if len(places) else len(sequences[-1]))
    return sequences, starts


def _packed(parts: Sequence[Any]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts)).float()
