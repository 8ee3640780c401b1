"""Natural rollouts, those whose tokens are scored, and what each teacher reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.config import PromptFormat
from tutelage.data.contexts import shown, siblings
from tutelage.data.render import render_one
from tutelage.models.base import Teacher
from tutelage.ops.alignment.design import stratum_weights
from tutelage.types import Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A teacher to be compared."""

    name: str
    """Under which results are reported."""
    model: Teacher
    """Who scores, in process or at a server; the student itself for a self-teacher."""
    view: PromptFormat | None
    """How it reads the question; None: the ids that the student reads."""

    def wants(self, column: str) -> bool:
        """Whether its turn of the user shows this column."""
        return self.view is not None and column in self.view.columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Spine:
    """A natural rollout whose tokens are scored."""

    rollout: Rollout
    """Prompt, tokens and verdict."""
    weight: float
    """Its share of its question's natural rollouts; the weights of a question sum to 1."""
    views: Mapping[str, tuple[int, ...] | None]
    """The question as each teacher reads it, by name; None where it has nothing to read (no other
    right rollout to show, say)."""

    @property
    def name(self) -> str:
        """Question and sample."""
        return f"{self.rollout.prompt.id}/{self.rollout.index}"

    @property
    def question(self) -> str:
        """Id of the prompt."""
        return self.rollout.prompt.id

    @property
    def right(self) -> bool:
        """The verdict on it."""
        return bool(self.rollout.reward)


def choose_spines(
    group: Sequence[Rollout], count: int, rng: np.random.Generator
) -> list[tuple[Rollout, float]]:
    """Judged rollouts of one question to score, with their weights.

    Half of them right and half wrong as far as there are, at random within a verdict.
    """
    judged = [r for r in group if r.reward is not None]
    if not judged:
        return []
    right = np.array([bool(r.reward) for r in judged])
    order = rng.permutation(len(judged))
    of_right, of_wrong = ([i for i in order if right[i] == verdict] for verdict in (True, False))
    half = min(len(of_right), max((count + 1) // 2, count - len(of_wrong)))
    if count < 2:  # one verdict alone would leave the other's nodes without a weight
        chosen = [int(order[0])]
        return [(judged[chosen[0]], 1.0)]
    chosen = sorted([*of_right[:half], *of_wrong[: count - half]])
    weights = stratum_weights(right, np.array(chosen))
    return [(judged[i], float(w)) for i, w in zip(chosen, weights, strict=True)]


def read_by(
    candidate: Candidate,
    spine: Rollout,
    others: Sequence[Rollout],
    summary: str | None,
    use_chat_template: bool,
) -> tuple[int, ...] | None:
    """The question as a candidate reads it beside this spine.

    A context shows rollouts other than the spine itself, which the teacher would
    only have to copy.
    """
    if candidate.view is None:
        return spine.prompt_ids
    columns = {"summary": summary, **siblings(spine, others)}
    if any(text is None and candidate.wants(column) for column, text in columns.items()):
        return None
    prompt = shown(columns, spine.prompt)
    tokenizer = candidate.model.tokenizer
    return render_one(prompt, tokenizer, candidate.view, use_chat_template, candidate.name)
