"""How the evaluations of a run stand: which were the best, and how many came since."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class Standing:
    """Scores of the evaluations so far, in their order; more is better."""

    metric: Literal["accuracy", "reverse_kl"]
    """What they are ranked by."""
    scores: list[tuple[int, float]] = field(default_factory=list)
    """(step, score); minus infinity after a step that was not applied."""

    def hear(self, step: int, record: Mapping[str, Any], applied: bool) -> None:
        """Take in an evaluation; one whose metric is undefined has no score."""
        value = record.get("accuracy" if self.metric == "accuracy" else "kl/reverse")
        if value is not None:
            score = float(value if self.metric == "accuracy" else -value)
            self.scores.append((step, score if applied else -math.inf))

    def best(self, count: int) -> list[int]:
        """Steps of the `count` best evaluations, the best first and the earlier of equals."""
        ranked = sorted(self.scores, key=lambda pair: (-pair[1], pair[0]))
        return [step for step, score in ranked[:count] if score > -math.inf]

    @property
    def best_step(self) -> int:
        """Step of the best evaluation; 0 where there is none."""
        return next(iter(self.best(1)), 0)

    @property
    def since_best(self) -> int:
        """Evaluations after the best one."""
        steps = [step for step, _ in self.scores]
        best = self.best(1)
        return len(steps) - 1 - steps.index(best[0]) if best else len(steps)
