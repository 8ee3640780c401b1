"""An alignment at work: sample, look, design, estimate; nothing here touches the disk."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tutelage.alignment.estimates import Alignment, estimate
from tutelage.alignment.moves import ObjectiveMove
from tutelage.alignment.spines import Candidate, Spine, read_by
from tutelage.alignment.tree import Tree, design, spines_of
from tutelage.config import AlignConfig, PromptFormat
from tutelage.data.render import render
from tutelage.data.verify import Verify, judge
from tutelage.errors import DataError
from tutelage.models.base import Sampler
from tutelage.models.compatibility import require_context
from tutelage.models.local import LocalModel
from tutelage.types import Prompt, RenderedPrompt, Rollout, SamplingParams

_SEEDS_APART = 1_000_003
NATURAL_STEP = -4
"""The step of natural rollouts: no training step, evaluation or branch has it."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Everything an alignment works with."""

    student: LocalModel
    """Whose policy it is."""
    sampler: Sampler
    """Who draws its rollouts: the student itself, or a server with its weights."""
    candidates: Sequence[Candidate]
    """Who is compared."""
    objectives: Mapping[str, ObjectiveMove]
    """What is compared, by name; `objective` is the run's own."""
    prompts: Sequence[RenderedPrompt]
    """The questions."""
    verify: Verify
    """Judges an answer."""
    settings: AlignConfig
    """How much of everything."""
    max_new_tokens: int
    """Most tokens of a completion."""
    temperature: float
    """Of sampling, and of both sides' probabilities."""
    use_chat_template: bool
    """As `DataConfig.use_chat_template`."""
    seed: int
    """Decides every draw."""

    def at(self, step: int) -> "Bench":
        """The same with draws that belong to a step of training."""
        return replace(self, seed=self.seed + _SEEDS_APART * step)

    def judge(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        """Verdicts, in order."""
        return [r.reward for r in judge(rollouts, self.verify)]


def spread(prompts: Sequence[RenderedPrompt], count: int) -> list[RenderedPrompt]:
    """At most `count` of them, evenly over all."""
    return [prompts[i] for i in places(len(prompts), count)]


def places(length: int, count: int) -> list[int]:
    """At most `count` places of a sequence of that length, evenly over it."""
    count = min(count, length)
    return [(2 * i + 1) * length // (2 * count) for i in range(count)]


def plant(bench: Bench, drawn: Sequence[Rollout] | None = None) -> Tree:
    """Spines, nodes and numbers of targeted rollouts.

    `drawn` are judged natural rollouts, `settings.samples` of each prompt; None draws them.
    """
    samples = bench.settings.samples
    if drawn is None:
        params = SamplingParams(max_new_tokens=bench.max_new_tokens, temperature=bench.temperature)
        natural = bench.sampler.sample(
            bench.prompts, params, group_size=samples, seed=bench.seed, step=NATURAL_STEP
        )
        drawn = [replace(r, reward=v) for r, v in zip(natural, bench.judge(natural), strict=True)]
    groups = [drawn[i : i + samples] for i in range(0, len(drawn), samples)]
    chosen = spines_of(groups, bench.settings.spines, bench.seed)
    others = {group[0].prompt.id: group for group in groups}
    summaries = _summaries(bench, others)
    spines = [
        Spine(
            rollout=rollout,
            weight=weight,
            views={
                candidate.name: read_by(
                    candidate,
                    rollout,
                    others[rollout.prompt.id],
                    summaries.get(rollout.prompt.id),
                    bench.use_chat_template,
                )
                for candidate in bench.candidates
            },
        )
        for rollout, weight in chosen
    ]
    for candidate in bench.candidates:
        read = [len(v) for spine in spines if (v := spine.views[candidate.name]) is not None]
        if not read:
            raise DataError(
                f"{candidate.name} has nothing to read at any spine: no question has another "
                "right (or wrong) rollout to show; raise align.samples, or choose other questions"
            )
        require_context(candidate.model, candidate.name, max(read), bench.max_new_tokens)
    return design(
        bench.student,
        bench.candidates,
        bench.objectives,
        spines,
        groups,
        bench.settings,
        bench.judge,
        max_new_tokens=bench.max_new_tokens,
        seed=bench.seed,
    )


def _summaries(bench: Bench, groups: Mapping[str, Sequence[Rollout]]) -> dict[str, str]:
    """The student's own summary of a right rollout of each question, where a teacher shows one."""
    if not any(candidate.wants("summary") for candidate in bench.candidates):
        return {}
    solved = [
        next(r for r in group if r.reward == 1)
        for group in groups.values()
        if any(r.reward == 1 for r in group)
    ]
    asked = [
        Prompt(
            id=f"{r.prompt.id}/summary",
            text=f"Summarise this solution in two sentences, without its result:\n\n{r.text}",
        )
        for r in solved
    ]
    rendered, _ = render(asked, bench.student.tokenizer, PromptFormat(), 10**9)
    params = SamplingParams(max_new_tokens=bench.max_new_tokens, temperature=bench.temperature)
    written = bench.sampler.sample(
        rendered, params, group_size=1, seed=bench.seed, step=NATURAL_STEP
    )
    return {r.prompt.id: w.text for r, w in zip(solved, written, strict=True)}


def conclude(
    bench: Bench, tree: Tree, records: Sequence[Mapping[str, Any]], draws: int = 2000
) -> Alignment:
    """Every answer from the branches done so far."""
    return estimate(
        tree,
        records,
        lambda token: kind_of(bench.student.tokens([token])[0]),
        window=bench.settings.window,
        use_backup=bench.settings.backup,
        seed=bench.seed,
        draws=draws,
    )


def kind_of(text: str) -> str:
    """What sort of token a text is: space, number, word, mark or special."""
    bare = text.strip()
    if not bare:
        return "space"
    if bare.startswith("<") and bare.endswith(">") and len(bare) > 2:
        return "special"
    categories = {unicodedata.category(letter)[0] for letter in bare}
    if "N" in categories:
        return "number"
    return "word" if "L" in categories else "mark"
