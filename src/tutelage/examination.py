"""What a student makes of the held-out questions while it trains, and what its teacher does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Protocol

from torch import Tensor

from tutelage.config import Config
from tutelage.contrast import contrast
from tutelage.errors import ServerError
from tutelage.evaluation import Evaluation, evaluate
from tutelage.gradient import Models
from tutelage.metrics import (
    Record,
    TokenTable,
    summarise_rollouts,
    summarise_sources,
    summarise_tokens,
)
from tutelage.models.base import Sampler
from tutelage.ranks import ALONE, Ranks
from tutelage.ranks.sharing import gather_rollouts, whole
from tutelage.runs.directory import finite
from tutelage.session import Session
from tutelage.token_records import LikelyTokens, held_out_weights, listed_tokens, token_scores
from tutelage.types import RenderedPrompt, Rollout, SamplingParams

# Steps that no training step has, so that evaluation never shares its draws.
EVALUATION_STEP = -1


class Measure(Protocol):
    """Per-token metrics of rollouts, and which rollout each token is of."""

    def __call__(
        self, models: Models, rollouts: Sequence[Rollout], likely: LikelyTokens | None = None
    ) -> tuple[TokenTable, Tensor]:
        """Measure; `likely` is shown all states."""


@dataclass(frozen=True, kw_only=True)
class Examination:
    """An evaluation of a student, and what is kept of it."""

    evaluation: Evaluation
    """Its answers, question by question."""
    record: Record
    """Accuracy and agreement."""
    tokens: Sequence[Mapping[str, Any]]
    """Some of its rollouts, token by token."""
    events: Sequence[dict[str, Any]]
    """What went amiss; `text` says it in a line."""


@dataclass(frozen=True)
class Examiner:
    """Asks the held-out questions of a run."""

    config: Config
    """Its settings."""
    session: Session
    """Its models and questions."""
    ranks: Ranks = ALONE
    """Who each ask their share of them."""

    def ask(
        self, model: Sampler, prompts: Sequence[RenderedPrompt], samples: int = 1
    ) -> Evaluation:
        """A model's answers to held-out questions, with draws that no training step has."""
        settings = self.config.evaluation
        params = SamplingParams(
            max_new_tokens=settings.max_new_tokens or self.config.rollout.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
        )
        own, fault = Evaluation(()), ""
        with whole(self.session.models.student, self.ranks):
            try:
                own = evaluate(
                    model,
                    self.ranks.deal(prompts),
                    self.session.verify,
                    params,
                    samples=samples,
                    seed=self.config.run.seed,
                    step=EVALUATION_STEP,
                )
            except ServerError as error:
                fault = str(error)
        if faults := [told for told in self.ranks.gather_json(fault) if told]:
            raise ServerError(faults[0])
        known = {prompt.prompt.id: prompt.prompt for prompt in prompts}
        rollouts = gather_rollouts(self.ranks, own.rollouts, samples, known)
        return Evaluation.of(rollouts, samples, was_judged=self.session.verify is not None)

    def ask_teacher(self) -> Record:
        """What the teacher itself answers to some held-out questions, as it reads them here.

        Raises:
            ServerError: it may score well and not sample.
        """
        count = min(self.config.evaluation.teacher, len(self.session.held_out))
        if not count or self.session.shows_siblings:  # nobody has answered beside it yet
            return {}
        places = [i * len(self.session.held_out) // count for i in range(count)]
        asked = [self.session.held_out[i].for_teacher() for i in places]
        result = self.ask(self.session.models.teacher, asked)
        record = {
            f"teacher/{key}": value
            for key, value in result.record().items()
            if key in ("accuracy", "accuracy/low", "accuracy/high", "accuracy/questions")
        }
        lengths = [len(rollout.completion_ids) for rollout in result.rollouts]
        ends = [rollout.finish_reason == "length" for rollout in result.rollouts]
        return record | {"teacher/length": fmean(lengths), "teacher/truncated": fmean(ends)}

    def teacher_accuracy(self) -> float | None:
        """The teacher's accuracy on the held-out questions; None where none can be judged."""
        asked = [prompt.for_teacher() for prompt in self.session.held_out]
        result = self.ask(self.session.models.teacher, asked, self.config.evaluation.samples)
        return fmean(result.accuracies) if result.accuracies else None


def examine(
    examiner: Examiner, models: Models, measure: Measure, *, with_teacher: bool
) -> Examination:
    """Held-out accuracy of the student and its agreement with its teacher.

    `models` hold the present teacher; `with_teacher` asks the first one the same questions.
    """
    config, session = examiner.config, examiner.session
    samples = config.evaluation.samples
    result = examiner.ask(session.sampler, session.held_out, samples)
    seen = session.show_siblings(result.rollouts)
    # One rollout each of questions spread over the held-out set, the same at every evaluation.
    shown = min(len(result.questions), config.run.record_rollouts)
    places = [i * len(result.questions) // shown * samples for i in range(shown)]
    count = sum(len(seen[i].completion_ids) for i in places)
    likely = LikelyTokens(places, listed_tokens(config.run.metrics_k, count))
    table, rows = measure(models, seen, likely)
    asked: Record = {}
    events: list[dict[str, Any]] = []
    if with_teacher:
        try:
            asked = examiner.ask_teacher()
        except ServerError as error:
            text = f"the teacher was not asked: {error}"
            events.append({"kind": "teacher_not_asked", "text": text})
    others = session.other_contexts
    beside = contrast(models, seen, others, table, measure) if others else {}
    record = result.record(ks=[samples] if samples > 1 else [])
    record |= finite(summarise_tokens(table))
    record |= finite(summarise_rollouts(result.rollouts, table, rows))
    record |= finite(summarise_sources(result.rollouts, table, rows))
    record |= asked | session.contexts_missing(seen) | finite(beside)
    weights = held_out_weights(config.objective, result.rollouts, table, rows)
    columns = table if weights is None else {**table, "weight": weights}
    tokenizer = models.student.tokenizer
    ranks = examiner.ranks
    mine = {str(i): likely.of(i) for i in places if i in ranks.deal(range(len(seen)))}
    lists = {name: lists for part in ranks.gather_json(mine) for name, lists in part.items()}
    tokens = [
        token_scores(result.rollouts[i], tokenizer, columns, rows == i, lists[str(i)])
        for i in places
    ]
    return Examination(evaluation=result, record=record, tokens=tokens, events=events)
