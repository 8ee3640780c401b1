"""Prompts from easy to hard, of which a run trains on the easiest ones first."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.config import CurriculumPolicy
from tutelage.errors import DataError
from tutelage.types import RenderedPrompt


@dataclass(frozen=True)
class Curriculum:
    """The order of a run's prompts, and how much of it is in use after some probes."""

    policy: CurriculumPolicy
    """Order, beginning and pace."""
    prompts: Sequence[RenderedPrompt]
    """From easy to hard; equals as the data has them."""
    least: int
    """Prompts that a step takes, so fewest in use."""

    @classmethod
    def of(
        cls, policy: CurriculumPolicy, prompts: Sequence[RenderedPrompt], least: int
    ) -> "Curriculum":
        """The curriculum of these prompts.

        Raises:
            DataError: a prompt without the number that orders them.
        """
        ordered = sorted(prompts, key=lambda prompt: difficulty(prompt, policy.by))
        return cls(policy, ordered, least)

    @property
    def start(self) -> int:
        """Prompts in use before the first probe."""
        return self._rounded(self.policy.start)

    def wider(self, window: int) -> int:
        """Prompts in use once more have joined `window`."""
        return min(len(self.prompts), window + self._rounded(self.policy.widen))

    def _rounded(self, share: float) -> int:
        return max(self.least, math.ceil(share * len(self.prompts)))

    def window(self, probes: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
        """How many prompts are in use after these probes, and since which step."""
        if not probes:
            return self.start, 0
        now = probes[-1]["alignment/next_window"]
        # It only ever widens, so the first probe that led to it is when it began.
        since = min(r["step"] for r in probes if r["alignment/next_window"] == now)
        return now, 0 if now == self.start else since

    def fits(self, prompt: RenderedPrompt, window: int) -> bool:
        """Whether a prompt is no harder than the hardest in use."""
        hardest = difficulty(self.prompts[window - 1], self.policy.by)
        return difficulty(prompt, self.policy.by) <= hardest


def difficulty(prompt: RenderedPrompt, by: str) -> float:
    """How hard a prompt is taken to be.

    Raises:
        DataError: its row has no such number.
    """
    if by == "prompt_tokens":
        return len(prompt.ids)
    value = prompt.prompt.metadata.get(by)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(
            f"align.probe.policy.by orders prompts by the column {by!r}, but prompt "
            f"{prompt.prompt.id} has {value!r} there; give every row a number, or use prompt_tokens"
        )
    return value
