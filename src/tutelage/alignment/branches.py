"""Targeted rollouts: from forced next tokens to counts of right answers.

An outcome counts for the child that was forced, and for children of deeper nodes
of the same spine that the rollout reached by itself; never for an ancestor, which
did not choose the forced token, and a spine's own outcome counts nowhere.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy import ndarray

from tutelage.alignment.nodes import REST, State
from tutelage.alignment.spines import Spine
from tutelage.models.base import Sampler
from tutelage.ops.alignment.node import Counts
from tutelage.ops.sampling import uniforms
from tutelage.types import RenderedPrompt, Rollout, SamplingParams

ALIGNMENT_STEP = -3
"""A step that no training step and no evaluation has."""
HALVES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """A child that is to be rolled out."""

    spine: Spine
    """Where it leaves from."""
    depth: int
    """Tokens of the completion before the child."""
    child: int
    """Token id, or REST for tokens drawn from all others."""
    rollouts: int
    """How many."""

    @property
    def name(self) -> str:
        """Spine, depth and child: the unit of work."""
        return f"{self.spine.name}/{self.depth}/{self.child}"


@dataclass(frozen=True, slots=True)
class Tally:
    """Right and judged rollouts of one child, in two halves."""

    right: list[int] = field(default_factory=lambda: [0] * HALVES)
    total: list[int] = field(default_factory=lambda: [0] * HALVES)

    def add(self, half: int, reward: float) -> None:
        """Count one outcome."""
        self.right[half] += int(reward > 0)
        self.total[half] += 1


def roll_out(
    sampler: Sampler,
    branches: Sequence[Branch],
    nodes: Mapping[str, State],
    rests: Mapping[str, ndarray],
    judge: Callable[[Sequence[Rollout]], list[float | None]],
    decode_text: Callable[[Sequence[int]], str],
    *,
    stops: frozenset[int],
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> Iterator[tuple[Branch, dict[str, Any]]]:
    """Decode all rollouts of some branches as one batch, and count their outcomes.

    `rests` holds, by node, the student's probabilities with the children set to 0. The
    outcomes depend on (seed, branch, index) alone.
    """
    prompts: list[RenderedPrompt] = []
    wanted: dict[str, set[int]] = {}
    owner: dict[str, tuple[Branch, tuple[int, ...]]] = {}
    drawn: list[tuple[Branch, Rollout]] = []
    spent: dict[str, int] = defaultdict(int)
    for branch in branches:
        spine = branch.spine.rollout
        for token, indices in _first_tokens(branch, rests, seed).items():
            name = f"{branch.name}={token}"
            forced = (*spine.completion_ids[: branch.depth], token)
            room = max_new_tokens - len(forced)
            if room == 0 or token in stops:  # drawn among the rest, and over at once
                ended = replace(spine, completion_ids=forced, text=decode_text(forced))
                drawn += [(branch, replace(ended, index=index)) for index in sorted(indices)]
                continue
            prompts.append(
                RenderedPrompt(
                    prompt=replace(spine.prompt, id=name),
                    ids=spine.prompt_ids + forced,
                    max_new_tokens=room,
                )
            )
            wanted[name], owner[name] = indices, (branch, forced)
    if prompts:
        longest = max(prompt.max_new_tokens or 0 for prompt in prompts)
        params = SamplingParams(max_new_tokens=longest, temperature=temperature)
        for rollout in sampler.sample(
            prompts,
            params,
            group_size=max(branch.rollouts for branch in branches),
            seed=seed,
            step=ALIGNMENT_STEP,
            only=lambda name, index: index in wanted[name],
        ):
            branch, forced = owner[rollout.prompt.id]
            spent[branch.name] += len(rollout.completion_ids)
            whole = (*forced, *rollout.completion_ids)
            prompt, text = branch.spine.rollout.prompt, decode_text(whole)
            finished = replace(rollout, prompt=prompt, completion_ids=whole, text=text)
            drawn.append((branch, finished))
    outcomes: dict[str, list[tuple[int, Rollout, float | None]]] = defaultdict(list)
    verdicts = judge([rollout for _, rollout in drawn])
    for (branch, rollout), reward in zip(drawn, verdicts, strict=True):
        outcomes[branch.name].append((rollout.index % HALVES, rollout, reward))
    for branch in branches:
        yield branch, _count(branch, nodes, outcomes[branch.name], spent[branch.name])


def _first_tokens(branch: Branch, rests: Mapping[str, ndarray], seed: int) -> dict[int, set[int]]:
    """The samples that begin with each token."""
    if branch.child != REST:
        return {branch.child: set(range(branch.rollouts))}
    cumulative = rests[f"{branch.spine.name}/{branch.depth}"].cumsum()
    draws = uniforms(branch.rollouts, seed, ALIGNMENT_STEP, branch.name) * cumulative[-1]
    tokens: dict[int, set[int]] = defaultdict(set)
    for index, token in enumerate(np.searchsorted(cumulative, draws, side="right")):
        tokens[int(token)].add(index)
    return tokens


def _count(
    branch: Branch,
    nodes: Mapping[str, State],
    outcomes: Sequence[tuple[int, Rollout, float | None]],
    spent: int,
) -> dict[str, Any]:
    """The record of a branch: counts of its child, and of those it reached below."""
    path = branch.spine.rollout.completion_ids
    tallies: dict[tuple[int, int], Tally] = defaultdict(Tally)
    unknown = 0
    for half, whole, reward in outcomes:
        if reward is None:
            unknown += 1
            continue
        tallies[branch.depth, branch.child].add(half, reward)
        for depth in range(branch.depth + 1, len(whole.completion_ids)):
            if depth > len(path) or whole.completion_ids[depth - 1] != path[depth - 1]:
                break
            below = nodes.get(f"{branch.spine.name}/{depth}")
            if below is not None:
                token = whole.completion_ids[depth]
                child = token if token in below.children else REST
                if child in below.children:
                    tallies[depth, child].add(half, reward)
    return {
        "spine": branch.spine.name,
        "tokens": spent,
        "unknown": unknown,
        "counts": [
            [depth, child, *tally.right, *tally.total] for (depth, child), tally in tallies.items()
        ],
    }


def settled(
    spine: Spine,
    depth: int,
    child: int,
    stops: frozenset[int],
    max_new_tokens: int,
    judge: Callable[[Sequence[Rollout]], list[float | None]],
    decode_text: Callable[[Sequence[int]], str],
) -> float | None:
    """The outcome of a child after which nothing is sampled any more; None for all others."""
    if child == REST or (child not in stops and depth + 1 < max_new_tokens):
        return None
    whole = (*spine.rollout.completion_ids[:depth], child)
    (reward,) = judge([replace(spine.rollout, completion_ids=whole, text=decode_text(list(whole)))])
    return reward


def counts_of(nodes: Sequence[State], records: Sequence[Mapping[str, Any]]) -> Counts:
    """Counts [N, K] of all nodes, from the records of all branches; padded with 0."""
    width = max(len(node.children) for node in nodes)
    arrays = np.zeros((2 * HALVES, len(nodes), width))
    rows = {node.name: i for i, node in enumerate(nodes)}
    columns = [{child: k for k, child in enumerate(node.children)} for node in nodes]
    for record in records:
        spine = record["spine"]
        for depth, child, *numbers in record["counts"]:
            row = rows[f"{spine}/{depth}"]
            arrays[:, row, columns[row][child]] += numbers
    right_a, right_b, total_a, total_b = arrays
    return Counts(right_a=right_a, total_a=total_a, right_b=right_b, total_b=total_b)
