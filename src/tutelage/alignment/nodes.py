"""Every state of the spines as the student and the teachers see it, and the nodes drawn from it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from tutelage.alignment.spines import Candidate, Spine
from tutelage.data.collate import collate
from tutelage.models.local import LocalModel
from tutelage.ops.alignment.design import children, draw_nodes, node_sizes
from tutelage.ops.alignment.moves import Move
from tutelage.types import Batch

REST = -1
"""Stands for all tokens that are no children."""
LEAST_REST = 1e-3
"""Mass below which all other tokens together are left out on both sides."""
_ELEMENTS = 2**23  # numbers of [rows, vocabulary] arrays held at once


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A state of a spine, reduced to its children and one outcome for the rest."""

    spine: str
    """Name of the spine."""
    depth: int
    """Tokens of the completion before it."""
    children: tuple[int, ...]
    """Token ids, and REST last where the rest has mass."""
    p: ndarray
    """[K] student over the children; sums to 1."""
    q: ndarray
    """[C, K] every teacher; NaN for one that has nothing to read here."""
    moves: ndarray
    """[C, O, K] D of every teacher and objective, the rest's summed."""
    entropy: float
    """Of the student over the whole vocabulary, nats."""
    teacher_entropies: tuple[float | None, ...]
    """[C] of every teacher."""
    chance: float = 1.0
    """pi, with which it was drawn to be a node."""

    @property
    def name(self) -> str:
        """Spine and depth."""
        return f"{self.spine}/{self.depth}"


@torch.no_grad()
def look(
    student: LocalModel,
    candidates: Sequence[Candidate],
    objectives: Mapping[str, Move],
    spines: Sequence[Spine],
    least: float,
) -> Iterator[list[State]]:
    """The states of each spine, at one forward pass of each model."""
    for spine in spines:
        rollout = spine.rollout
        batch = collate([rollout])
        reads: list[tuple[LocalModel, Tensor] | None] = []
        for candidate in candidates:
            view = spine.views[candidate.name]
            if view is None:
                reads.append(None)
                continue
            teachers = collate([replace(rollout, teacher_prompt_ids=view)], side="teacher")
            reads.append((candidate.model, candidate.model.hidden(teachers)))
        own = student.hidden(batch)
        states: list[State] = []
        arrays = 1 + len(candidates) * (1 + len(objectives))
        rows = max(1, _ELEMENTS // (student.vocabulary * arrays))
        for start in range(0, len(own), rows):
            part = slice(start, start + rows)
            p = _probabilities(student, own[part])
            q = [None if read is None else _probabilities(read[0], read[1][part]) for read in reads]
            moves = [[None if t is None else move(p, t) for move in objectives.values()] for t in q]
            states += _reduce(spine, batch, part, p, q, moves, least)
        yield states


def _probabilities(model: LocalModel, hidden: Tensor) -> ndarray:
    """[n, V] in float64, summing to 1 to rounding."""
    values = model.head.logits(hidden).double().softmax(-1).cpu().numpy()
    return np.asarray(values)


def _reduce(
    spine: Spine,
    batch: Batch,
    part: slice,
    p: ndarray,
    q: Sequence[ndarray | None],
    moves: Sequence[Sequence[ndarray | None]],
    least: float,
) -> list[State]:
    states: list[State] = []
    present = [t for t in q if t is not None]
    targets = batch.targets[part].tolist()
    for row, target in enumerate(targets):
        teachers = np.stack([t[row] for t in present]) if present else np.zeros((0, p.shape[1]))
        ids = children(p[row], teachers, target, least)
        rest = 1 - np.array([p[row, ids].sum(), *teachers[:, ids].sum(-1)])
        has_rest = bool((rest >= LEAST_REST).any())

        def reduced(full: ndarray | None, ids: ndarray = ids, lump: bool = has_rest) -> ndarray:
            if full is None:
                return np.full(len(ids) + lump, np.nan)
            kept = full[ids]
            return np.append(kept, full.sum() - kept.sum()) if lump else kept

        student = np.maximum(reduced(p[row]), 0.0)
        sides = [np.maximum(reduced(None if t is None else t[row]), 0.0) for t in q]
        states.append(
            State(
                spine=spine.name,
                depth=part.start + row,
                children=(*(int(i) for i in ids), *([REST] if has_rest else [])),
                p=student / student.sum(),
                q=np.stack([side / side.sum() for side in sides]),
                moves=np.stack(
                    [
                        np.stack([reduced(None if m is None else m[row]) for m in of_teacher])
                        for of_teacher in moves
                    ]
                ),
                entropy=_entropy(p[row]),
                teacher_entropies=tuple(None if t is None else _entropy(t[row]) for t in q),
            )
        )
    return states


def _entropy(p: ndarray) -> float:
    return float(-(p * np.log(np.where(p > 0, p, 1.0))).sum())


@torch.no_grad()
def rest_of(student: LocalModel, spine: Spine, nodes: Sequence[State]) -> dict[str, ndarray]:
    """The student's probabilities [V] with the children set to 0, by node that has a rest."""
    due = [node for node in nodes if REST in node.children]
    if not due:
        return {}
    hidden = student.hidden(collate([spine.rollout]))
    p = _probabilities(student, hidden[[node.depth for node in due]])
    for row, node in zip(p, due, strict=True):
        row[list(node.children[:-1])] = 0.0
    return {node.name: row for node, row in zip(due, p, strict=True)}


def move_squares(states: Sequence[State]) -> ndarray:
    """||D||^2 of every state, teacher and objective [N, C, O]; NaN where a teacher is absent."""
    return np.stack([(state.moves**2).sum(-1) for state in states])


def state_sizes(states: Sequence[State], scale: ndarray, explore: float) -> ndarray:
    """Sizes [N] of the states of a spine, to which their chances are proportional.

    `scale` [C, O] is the mean ||D|| of each teacher's objective over all spines, so that no
    objective chooses the nodes by its units.
    """
    norms = np.nan_to_num(np.sqrt(move_squares(states)) / np.where(scale > 0, scale, 1.0))
    return node_sizes(norms.reshape(len(states), -1).T[:, :, None], explore)


def choose_nodes(
    states: Sequence[State],
    sizes: ndarray,
    per_window: int,
    window: int,
    rng: np.random.Generator,
) -> list[State]:
    """The nodes of one spine, with their chances."""
    places, chances = draw_nodes(sizes, per_window, rng, window)
    return [
        replace(states[i], chance=float(chance)) for i, chance in zip(places, chances, strict=True)
    ]
