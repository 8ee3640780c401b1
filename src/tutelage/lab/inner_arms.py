"""Arms that look inside answers: by place, by outcome, by what the prompts are about."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tutelage.alignment.job import align
from tutelage.alignment.measured import gather, node_scores
from tutelage.alignment.published import published_nodes
from tutelage.alignment.tree import load_tree
from tutelage.config import parse_config
from tutelage.data.prompts import load_prompts
from tutelage.errors import DataError
from tutelage.lab.arms import SHORT, Distil, Numbers, Place
from tutelage.lab.tasks import write_prompts
from tutelage.ops.alignment.pooling import pool
from tutelage.runs.directory import read_lines
from tutelage.runs.ledger import Ledger
from tutelage.runs.seals import digest_of
from tutelage.types import Prompt

PLACES = 4
"""Stretches of equal length that the longest answer is cut into."""
WINDOW = 20
"""Steps that a profile averages over."""
PROFILED = (
    "overlap/mass_student",
    "overlap/advantage",
    "entropy/gap",
    "entropy/student",
    "entropy/teacher",
    "reward/mean",
)
"""What is kept of each place."""


def profile(records: Sequence[Mapping[str, Any]], longest: int) -> dict[str, list[float | None]]:
    """Means over tokens by place in the answer, of records of positions.jsonl.

    A place without tokens has none.
    """
    found: dict[str, list[float | None]] = {}
    for key in PROFILED:
        sums, counts = np.zeros(PLACES), np.zeros(PLACES)
        for record in records:
            bins = record["bins"]
            columns = zip(record["edges"], bins["tokens"], bins.get(key, ()), strict=False)
            for begin, tokens, value in columns:
                if value is not None:
                    place = min(PLACES - 1, begin * PLACES // longest)
                    sums[place] += tokens * value
                    counts[place] += tokens
        pairs = zip(sums, counts, strict=True)
        found[key] = [float(total / count) if count else None for total, count in pairs]
    return found


@dataclass(frozen=True, kw_only=True)
class ByPlace(Distil):
    """Distillation that also tells its metrics by place in the answer, at its beginning and end."""

    def run(self, place: Place) -> Numbers:
        """Evaluations by step, and `profiles`: when -> metric -> value at each place."""
        numbers = super().run(place)
        folder = place.folder / "runs" / self._name
        records = list(read_lines(folder / "positions.jsonl"))
        window = min(WINDOW, max(1, len(records) // PLACES))
        longest = place.task.longest_solution
        numbers["profiles"] = {
            "at first": profile(records[:window], longest),
            "at last": profile(records[-window:], longest),
        }
        numbers["places"] = [round((i + 0.5) * longest / PLACES, 1) for i in range(PLACES)]
        return numbers


@dataclass(frozen=True, kw_only=True)
class OfContent(Distil):
    """Distillation on prompts of which this share of the operands is hard."""

    hard_share: float

    def prompts(self, place: Place, count: int) -> list[Prompt]:
        """Drawn as the post-training data of the compatible teacher is, with another share."""
        return place.task.train_prompts(count, place.seed, self.hard_share)

    @property
    def _content(self) -> str:
        return f"-hard-{self.hard_share}"


OUTCOMES = ("right", "wrong")
MEASURES = ("published", "mean_cosine", "alignment", "dot", "advantage")


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """Gradient alignment of a teacher on right and on wrong answers of the student."""

    student: str
    teacher: str
    questions: int = 48
    budget: int = 600_000
    """Decoded tokens on the running total."""

    @property
    def models(self) -> tuple[str, ...]:
        """Student and teacher."""
        return self.student, self.teacher

    def run(self, place: Place) -> Numbers:
        """`right` and `wrong`: each measure on the nodes of such answers, where it is defined.

        `published` counts as 2605.10889 does, `mean_cosine` is the same mean with ancestors'
        and a node's own outcomes left out, the others pool nodes by visits.
        """
        try:
            tree, nodes = self._measured(place)
        except DataError as error:  # every answer has the same verdict
            return {**{name: {} for name in OUTCOMES}, "undefined": str(error)}
        scores, rows = node_scores(nodes, 0, 0)
        published = published_nodes(tree, nodes, 0)[rows]
        found: Numbers = {}
        for name in OUTCOMES:
            kept = np.flatnonzero(nodes.right[rows] == (name == "right"))
            found[name] = {"nodes": len(kept)}
            if not len(kept):
                continue
            owners = [nodes.questions[rows[i]] for i in kept]
            values = pool(scores[kept], owners, nodes.weights[rows[kept]])
            seen = published[kept][~np.isnan(published[kept])]
            told = {"published": float(seen.mean()) if len(seen) else None}
            for measure in MEASURES[1:]:
                estimate = getattr(values, measure)
                told[measure] = None if estimate is None else estimate.value
            found[name] |= told
        return found

    def _budget(self, place: Place) -> int:
        """Twice as much where a node has more children, since there are more residues."""
        return self.budget * (2 if place.task.modulus > 10 else 1)

    def _measured(self, place: Place) -> tuple[Any, Any]:
        """The tree of the alignment and its nodes."""
        short = place.size is SHORT
        name = f"outcomes-{self.student}-{self.teacher}-{digest_of(repr(self))}"
        prompts = place.folder / f"{name}.jsonl"
        questions = 4 if short else self.questions
        write_prompts(prompts, place.task.eval_prompts(questions, seed=200 + place.seed))
        aimed = 4 if short else 20  # what the published estimator asks of each child
        config = parse_config(
            {
                "student": {"path": str(place.models.path(self.student, place.seed))},
                "teacher": {"path": str(place.models.path(self.teacher, place.seed))},
                "data": {
                    "prompts": str(prompts),
                    "verifier": place.task.verifier.model_dump(mode="json"),
                },
                "rollout": {
                    "max_new_tokens": place.task.longest_solution,
                    "batch_size": 1024,
                },
                "align": {
                    "samples": 8,
                    "spines": 4,
                    "rollouts": aimed,
                    "floor": aimed,
                    "objectives": {},
                    "questions": questions,
                    "budget": 20_000 if short else self._budget(place),
                },
                "run": {"seed": place.seed},
            }
        )
        output = place.folder / "runs" / name
        align(config, output, overwrite=output.exists())
        tree = load_tree(output, {prompt.id: prompt for prompt in load_prompts(str(prompts))})
        return tree, gather(tree, Ledger(output / "rollouts.jsonl").records)


@dataclass(frozen=True, kw_only=True)
class OnLong(ByPlace):
    """Distillation on longer problems than the task's own."""

    lengths: tuple[int, int]
    """Fewest and most slots."""

    def run(self, place: Place) -> Numbers:
        """As `ByPlace`, its places those of the longest whole answer."""
        task = replace(place.task, lengths=self.lengths)
        return super().run(replace(place, other_task=task))

    @property
    def _content(self) -> str:
        return f"-slots-{self.lengths[0]}-{self.lengths[1]}"
