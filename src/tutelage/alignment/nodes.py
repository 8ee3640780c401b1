"""Every state of the spines as the student and the teachers see it, and the nodes drawn from it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from tutelage.alignment.moves import ObjectiveMove
from tutelage.alignment.spines import Candidate, Spine
from tutelage.data.collate import collate
from tutelage.models.base import Judgement, Teacher
from tutelage.models.local import LocalModel
from tutelage.models.served.teacher import ServedJudgement, ServedTeacher
from tutelage.ops.alignment.design import children, draw_nodes, node_sizes
from tutelage.ops.logprobs import log_softmax_
from tutelage.ops.support import top_k_ids
from tutelage.types import Batch, Rollout

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
    """[C] of every teacher; None where it has nothing to read, or its server lists tokens."""
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
    objectives: Mapping[str, ObjectiveMove],
    spines: Sequence[Spine],
    least: float,
) -> Iterator[list[State]]:
    """The states of each spine, at one forward pass of each model.

    A server that lists some tokens alone says nothing of the others: those that not every teacher
    gives a probability are never children, whoever likes them, and belong to the rest.
    """
    asked = max([ceil(1 / least), *(m.support for m in objectives.values())])
    for spine in spines:
        rollout = spine.rollout
        batch = collate([rollout])
        own = student.hidden(batch)

        def propose(k: int, own: Tensor = own) -> Tensor:
            return top_k_ids(student.head.logits(own), k)

        judgements = [
            None
            if (view := spine.views[candidate.name]) is None
            else _judgement(candidate.model, rollout, view, propose, asked)
            for candidate in candidates
        ]
        states: list[State] = []
        arrays = 1 + len(candidates) * (1 + len(objectives))
        rows = max(1, _ELEMENTS // (student.vocabulary * arrays))
        for start in range(0, len(own), rows):
            part = slice(start, start + rows)
            logp = log_softmax_(student.head.logits(own[part]).double())
            reads = [
                None if j is None else _read(j, batch, part, logp, objectives) for j in judgements
            ]
            p = logp.exp().cpu().numpy()
            states += _reduce(spine, batch, part, p, reads, len(objectives), least)
        yield states


@dataclass(frozen=True, slots=True)
class _Read:
    """A teacher at some states."""

    q: ndarray
    """[n, V]; NaN where a server did not say."""
    moves: Sequence[ndarray]
    """[n, V] D of every objective; NaN where it is not known."""


def _judgement(
    teacher: Teacher,
    rollout: Rollout,
    view: tuple[int, ...],
    propose: Callable[[int], Tensor],
    asked: int,
) -> Judgement:
    if isinstance(teacher, ServedTeacher):
        teacher = teacher.asked_for(asked)
    batch = collate([replace(rollout, teacher_prompt_ids=view)], side="teacher")
    return teacher.judge(batch, propose)


def _read(
    judgement: Judgement,
    batch: Batch,
    part: slice,
    logp: Tensor,
    objectives: Mapping[str, ObjectiveMove],
) -> _Read:
    """What a teacher says of these states; `logp` [n, V] is the student's."""
    if isinstance(judgement, ServedJudgement) and not judgement.teacher.question.complete:
        known = torch.full_like(logp, torch.nan)
        sampled = batch.targets[part, None].to(logp.device)
        known.scatter_(-1, sampled, judgement.sampled[part, None].to(logp))
        known.scatter_(-1, *judgement.known(part, logp)).exp_()
        listed = [move.on_list(logp, known, judgement, part) for move in objectives.values()]
        return _Read(known.cpu().numpy(), listed)
    logq = judgement.at(part, logp)
    assert isinstance(logq, Tensor)
    q, p = (side.exp().cpu().numpy() for side in (logq, logp))
    return _Read(q, [move(p, q) for move in objectives.values()])


def _probabilities(model: LocalModel, hidden: Tensor) -> ndarray:
    """[n, V] in float64, summing to 1 to rounding."""
    values = model.head.logits(hidden).double().softmax(-1).cpu().numpy()
    return np.asarray(values)


def _reduce(
    spine: Spine,
    batch: Batch,
    part: slice,
    p: ndarray,
    reads: Sequence[_Read | None],
    objectives: int,
    least: float,
) -> list[State]:
    states: list[State] = []
    present = [read.q for read in reads if read is not None]
    targets = batch.targets[part].tolist()
    for row, target in enumerate(targets):
        teachers = np.stack([t[row] for t in present]) if present else np.zeros((0, p.shape[1]))
        ids = children(p[row], teachers, target, least)
        ids = ids[~np.isnan(teachers[:, ids]).any(0)]
        rest = 1 - np.array([p[row, ids].sum(), *teachers[:, ids].sum(-1)])
        has_rest = bool((rest >= LEAST_REST).any())

        def reduced(
            full: ndarray | None, total: float, ids: ndarray = ids, lump: bool = has_rest
        ) -> ndarray:
            """The children's entries, and what they leave of the whole vocabulary's sum."""
            if full is None:
                return np.full(len(ids) + lump, np.nan)
            kept = full[ids]
            return np.append(kept, total - kept.sum()) if lump else kept

        def side(full: ndarray | None, reduced: Callable[..., ndarray] = reduced) -> ndarray:
            kept = np.maximum(reduced(full, 1.0), 0.0)
            return np.asarray(kept / kept.sum())

        states.append(
            State(
                spine=spine.name,
                depth=part.start + row,
                children=(*(int(i) for i in ids), *([REST] if has_rest else [])),
                p=side(p[row]),
                q=np.stack([side(None if read is None else read.q[row]) for read in reads]),
                # Every move is a gradient in logits, so its entries sum to 0.
                moves=np.stack(
                    [
                        np.stack(
                            [
                                reduced(None if read is None else read.moves[o][row], 0.0)
                                for o in range(objectives)
                            ]
                        )
                        for read in reads
                    ]
                ),
                entropy=_entropy(p[row]),
                teacher_entropies=tuple(
                    None if read is None or np.isnan(read.q[row]).any() else _entropy(read.q[row])
                    for read in reads
                ),
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
    """Sizes [N] of the states of a spine, to which their chances to be nodes are proportional.

    `scale` [C, O] is the mean ||D|| of each teacher's objective over all spines, so that no
    objective chooses the nodes by its units.
    """
    norms = np.nan_to_num(np.sqrt(move_squares(states)) / np.where(scale > 0, scale, 1.0))
    return node_sizes(norms.reshape(len(states), -1).T[:, :, None], explore)


def choose_nodes(
    states: Sequence[State],
    scale: ndarray,
    per_window: int,
    window: int,
    explore: float,
    rng: np.random.Generator,
) -> list[State]:
    """The nodes of one spine, with their chances; `scale` as for `state_sizes`."""
    places, chances = draw_nodes(state_sizes(states, scale, explore), per_window, rng, window)
    return [
        replace(states[i], chance=float(chance)) for i, chance in zip(places, chances, strict=True)
    ]
