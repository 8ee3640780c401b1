"""From token tables to the record of a step.

A token table maps a metric to one number for each scored token, NaN where it is
undefined. Averages are global over the tokens on which a metric is defined; a
metric that is defined nowhere is absent from the record.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.ops import divergences, logprobs, overlap
from tutelage.ops.support import top_k_ids
from tutelage.types import Prompt, Rollout, TokenScores

TokenTable = dict[str, Tensor]
Record = dict[str, Any]

POSITION_BINS = 32
NEAR_TIE = 1e-4  # nats; engines agree to about this
SOURCES = 32  # most data sources with metrics of their own
_BY_SOURCE = ("kl/reverse", "overlap/ratio")
CHUNK = 1024  # the paper's unit of depth, in tokens


def overlap_k(k: int, vocabulary: int) -> int:
    """Top-k of the overlap metrics: at most an eighth of the vocabulary, so chance stays small."""
    return max(1, min(k, vocabulary // 8))


def token_statistics(
    student: Tensor, teacher: Tensor, sampled: Tensor, k: int, probs: Tensor | None = None
) -> TokenTable:
    """What can be said of N states from both full distributions [N, V]; all values [N].

    `probs` [N, V] is exp(student), where it is at hand.
    """
    student_ids, student_tie = _top_k(student, k)
    teacher_ids, teacher_tie = _top_k(teacher, k)
    common = overlap.shared(student_ids, teacher_ids)
    p, q = student.gather(-1, student_ids), teacher.gather(-1, student_ids)
    # [N, V] is passed over as seldom as may be: that is what this costs.
    probs = student.exp() if probs is None else probs
    difference = student - teacher
    reverse = torch.linalg.vecdot(probs, difference)
    entropy_student = logprobs.entropy_of(probs, student)
    probs = teacher.exp()
    entropy_teacher = logprobs.entropy_of(probs, teacher)
    forward = -difference.mul_(probs).sum(-1)
    student_logprob = logprobs.gather(student, sampled)
    teacher_logprob = logprobs.gather(teacher, sampled)
    return {
        **_overlap(p, q, common),
        "overlap/near_ties": (student_tie | teacher_tie).float(),
        "entropy/student": entropy_student,
        "entropy/teacher": entropy_teacher,
        "entropy/gap": (entropy_teacher - entropy_student).abs(),
        "kl/reverse": reverse,
        "kl/forward": forward,
        "reward/mean": teacher_logprob - student_logprob,
        **divergence_monitors(student_logprob, teacher_logprob),
        "student_logprob": student_logprob,
        "teacher_logprob": teacher_logprob,
    }


def _overlap(student: Tensor, teacher: Tensor, common: Tensor) -> TokenTable:
    """Overlap of N states, from both sides' log-probabilities [N, k] of the student's top k.

    `common`, bool [N, k], says which of these are in the teacher's top k too; the teacher's values
    of the others are not read.
    """
    pooled, pairs = overlap.overlap_advantage_unnormalised(student, teacher, common)
    return {
        "overlap/ratio": overlap.overlap_ratio(common),
        "overlap/advantage": overlap.overlap_advantage(student, teacher, common),
        "overlap/advantage_unnormalised": pooled,
        "overlap/pairs": pairs,
        "overlap/mass_student": overlap.shared_mass(student, common),
        "overlap/mass_teacher": overlap.shared_mass(teacher, common),
        "overlap/empty_fraction": (~common.any(-1)).float(),
    }


def served_statistics(student: Tensor, teacher: TokenScores, sampled: Tensor, k: int) -> TokenTable:
    """What can be said of N states from the student's [N, V] and a server's lists; values [N].

    Overlap is exact, since it asks about the teacher's most likely tokens alone; it is left out
    where the list is shorter than k. The divergences are bucketed: what the server listed, the
    sampled token, and one outcome for the rest (`kl/bucketed` is 1). The teacher's entropy is
    not known.
    """
    assert teacher.likely_ids is not None
    assert teacher.likely_logprobs is not None
    ids, values = teacher.likely_ids, teacher.likely_logprobs
    student_logprob, teacher_logprob = logprobs.gather(student, sampled), teacher.sampled
    table: TokenTable = {}
    if ids.shape[-1] >= k:
        student_ids, student_tie = _top_k(student, k)
        common = overlap.shared(student_ids, ids[:, :k])
        p = student.gather(-1, student_ids)
        same = student_ids.unsqueeze(-1) == ids[:, :k].unsqueeze(-2)
        # Only shared tokens are read, and those the server listed.
        q = torch.where(same, values[:, :k].unsqueeze(-2), -torch.inf).amax(-1)
        q = torch.where(common, q, p)
        table = _overlap(p, q, common)
        if ids.shape[-1] > k:
            tie = values[:, k - 1] - values[:, k] < NEAR_TIE
            table["overlap/near_ties"] = (student_tie | tie).float()
    known = torch.cat([ids, sampled.unsqueeze(-1)], dim=-1)
    mask = torch.ones_like(known, dtype=torch.bool)
    mask[:, -1] = (ids != sampled.unsqueeze(-1)).all(-1)
    p = student.gather(-1, known)
    q = torch.cat([values, teacher_logprob.unsqueeze(-1)], dim=-1)
    return table | {
        "entropy/student": logprobs.entropy(student),
        "kl/reverse": divergences.bucketed(divergences.reverse_kl_terms, p, q, mask),
        "kl/forward": divergences.bucketed(divergences.forward_kl_terms, p, q, mask),
        "kl/bucketed": torch.ones_like(student_logprob),
        "reward/mean": teacher_logprob - student_logprob,
        **divergence_monitors(student_logprob, teacher_logprob),
        "student_logprob": student_logprob,
        "teacher_logprob": teacher_logprob,
    }


def _top_k(logprobs_: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Ids [N, k], and whether the next one is so near that another code path may swap them [N]."""
    ids = top_k_ids(logprobs_, min(k + 1, logprobs_.shape[-1]))
    values = logprobs_.gather(-1, ids)
    return ids[:, :k], (values[:, k - 1] - values[:, -1] < NEAR_TIE) & (ids.shape[-1] > k)


def divergence_monitors(student: Tensor, teacher: Tensor) -> TokenTable:
    """Sampled estimates k1, k2, k3 of the reverse KL [N]: to watch, not to differentiate."""
    log_u = teacher - student
    return {"kl/k1": -log_u, "kl/k2": log_u**2 / 2, "kl/k3": log_u.expm1() - log_u}


_NOT_AVERAGED = (
    "overlap/pairs",
    "overlap/advantage_unnormalised",
    "student_logprob",
    "teacher_logprob",
)


def concatenate(tables: Sequence[TokenTable]) -> TokenTable:
    """One table of all tokens, in order."""
    return {key: torch.cat([table[key] for table in tables]) for key in tables[0]}


def summarise_tokens(table: TokenTable) -> Record:
    """Global means of a table, with the reward's tails and the count of tokens."""
    keys, values, defined = _averaged(table)
    tokens = values.shape[-1]
    record: Record = {"tokens": tokens}
    counts = defined.sum(-1)
    means = (values.sum(-1) / counts).tolist()
    for key, mean, count in zip(keys, means, counts.tolist(), strict=True):
        if count:
            record[key] = mean
            if count != tokens:
                record[f"{key}/count"] = count
    pairs = table["overlap/pairs"].double().sum().item() if "overlap/pairs" in table else 0
    if pairs:
        record["overlap/advantage_unnormalised"] = (
            table["overlap/advantage_unnormalised"].double().sum().item() / pairs
        )
    reward = table["reward/mean"].double()
    if len(reward):
        p01, p99 = np.quantile(reward.numpy(), [0.01, 0.99])
        record["reward/p01"], record["reward/p99"] = float(p01), float(p99)
        sizes = reward.abs().sort(descending=True).values
        if sizes.sum() > 0:
            largest = sizes[: math.ceil(len(sizes) / 100)]
            record["reward/top1pct_share"] = (largest.sum() / sizes.sum()).item()
    return record


def summarise_positions(table: TokenTable, positions: Tensor, longest: int) -> dict[str, object]:
    """Means by place in the completion: 32 linear bins, and the paper's chunks beyond 1,024."""
    bins = min(POSITION_BINS, longest)
    series: dict[str, object] = {
        "bins": _by_bin(table, positions * bins // longest, bins),
        "edges": [round(i * longest / bins) for i in range(bins + 1)],
    }
    if longest > CHUNK:
        series["chunks_1024"] = _by_bin(table, positions // CHUNK, math.ceil(longest / CHUNK))
    return series


def summarise_rollouts(rollouts: Sequence[Rollout], table: TokenTable, rows: Tensor) -> Record:
    """Length, stopping, repetition and sequence rewards of the rollouts behind a table."""
    count = len(rollouts)
    if not count:
        return {}
    record: Record = {
        "rollout/count": count,
        "rollout/length": sum(len(r.completion_ids) for r in rollouts) / count,
        "rollout/truncated": sum(r.finish_reason == "length" for r in rollouts) / count,
    }
    repeats = [
        r for r in (repetition(rollout.completion_ids) for rollout in rollouts) if r is not None
    ]
    if repeats:
        record["rollout/repetition"] = sum(repeats) / len(repeats)
    record["kl/reverse_sequence"] = table["kl/reverse"].double().sum().item() / count
    rewards = sequence_rewards(table, rows, count)
    defined = [r for r in rewards if r is not None]
    if defined:
        record["sequence_reward"] = sum(defined) / len(defined)
    judged = [
        (reward, rollout.reward)
        for reward, rollout in zip(rewards, rollouts, strict=True)
        if reward is not None and rollout.reward is not None
    ]
    if judged:
        record["rollout/accuracy"] = sum(right for _, right in judged) / len(judged)
        if unknown := sum(rollout.reward is None for rollout in rollouts):
            record["rollout/unknown"] = unknown
        auroc = area_under_curve(
            [r for r, right in judged if right >= 0.5], [r for r, right in judged if right < 0.5]
        )
        if auroc is not None:
            record["sequence_reward/auroc"] = auroc
    return record


def horizon_of(rollouts: Sequence[Rollout], most: int) -> int | None:
    """Tokens after which rollouts that may have `most` were cut; None where none was before."""
    cut = [len(r.completion_ids) for r in rollouts if r.finish_reason == "length"]
    return max((n for n in cut if n < most), default=None)


def by_source(prompts: Sequence[Prompt]) -> dict[str, list[int]]:
    """Places of the prompts that each data source holds, by its name as part of a metric's key.

    What a key cannot hold becomes `_`, and names that are then equal are one. The `SOURCES`
    largest are kept; prompts whose row names no source are in none.
    """
    places: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        if prompt.source is not None:
            name = re.sub(r"[^A-Za-z0-9_.-]+", "_", prompt.source)[:64] or "_"
            places.setdefault(name, []).append(place)
    largest = sorted(places, key=lambda name: -len(places[name]))[:SOURCES]
    return {name: places[name] for name in sorted(largest)}


def summarise_sources(rollouts: Sequence[Rollout], table: TokenTable, rows: Tensor) -> Record:
    """Agreement with the teacher by data source: means over the tokens of its rollouts."""
    record: Record = {}
    for name, places in by_source([rollout.prompt for rollout in rollouts]).items():
        mine = torch.isin(rows, torch.tensor(places))
        for key in _BY_SOURCE:
            mean, _ = _defined_mean(table[key][mine])
            if mean is not None:
                record[f"{key}/source/{name}"] = mean
    return record


def defined_rows(table: TokenTable, rows: Tensor, count: int) -> Tensor:
    """bool [count]: rollouts of which both sides' log-probability of every token is finite."""
    known = table["student_logprob"].isfinite() & table["teacher_logprob"].isfinite()
    return torch.bincount(rows[~known], minlength=count) == 0


def sequence_rewards(table: TokenTable, rows: Tensor, count: int) -> list[float | None]:
    """Mean of log q(y) - log p(y) over each rollout; None for an empty one."""
    totals = torch.zeros(count, dtype=torch.float64)
    totals.index_add_(0, rows, table["reward/mean"].double())
    sizes = torch.bincount(rows, minlength=count)
    return [
        total / size if size else None
        for total, size in zip(totals.tolist(), sizes.tolist(), strict=True)
    ]


def repetition(ids: Sequence[int], n: int = 4) -> float | None:
    """1 - distinct / total n-grams; None where there is no n-gram."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else None


def area_under_curve(positives: Sequence[float], negatives: Sequence[float]) -> float | None:
    """Chance that a positive scores above a negative, ties half; None if either is empty."""
    if not positives or not negatives:
        return None
    scores = torch.tensor([*positives, *negatives], dtype=torch.float64)
    _, inverse, counts = scores.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[inverse]  # equal scores share their mean rank
    wins = ranks[: len(positives)].sum().item() - len(positives) * (len(positives) + 1) / 2
    return float(wins / (len(positives) * len(negatives)))


def _defined_mean(values: Tensor) -> tuple[float | None, int]:
    defined = values[~values.isnan()]
    return (defined.double().mean().item() if len(defined) else None), len(defined)


def _by_bin(table: Mapping[str, Tensor], place: Tensor, bins: int) -> dict[str, list[float | None]]:
    keys, values, defined = _averaged(table)
    sums = values.new_zeros(len(keys), bins).index_add_(1, place, values)
    counts = values.new_zeros(len(keys), bins).index_add_(1, place, defined.double())
    series: dict[str, list[float | None]] = {
        "tokens": torch.bincount(place, minlength=bins).double().tolist()
    }
    for key, of_key, count_of_key in zip(keys, sums.tolist(), counts.tolist(), strict=True):
        series[key] = [
            total / count if count else None
            for total, count in zip(of_key, count_of_key, strict=True)
        ]
    return series


def _averaged(table: Mapping[str, Tensor]) -> tuple[list[str], Tensor, Tensor]:
    """Keys of the averaged metrics; their values, float64 [K, N], 0 where undefined; where not."""
    keys = [key for key in table if key not in _NOT_AVERAGED]
    values = torch.stack([table[key].double() for key in keys])
    defined = ~values.isnan()
    return keys, torch.where(defined, values, 0.0), defined


def last_positions(rows: Tensor) -> Tensor:
    """bool [N]: which scored tokens are the last of their rollout."""
    last = torch.ones(len(rows), dtype=torch.bool)
    last[:-1] = rows[1:] != rows[:-1]
    return last


def stop_masses(
    student: Tensor, teacher: Tensor | None, last: Tensor, stop_ids: frozenset[int]
) -> TokenTable:
    """Probability of all stop ids where `last` is set, NaN elsewhere; [N].

    The teacher's is left out where its distribution is not at hand.
    """
    known = sorted(i for i in stop_ids if i < student.shape[-1])
    ids = torch.tensor(known, dtype=torch.long, device=student.device)
    table: TokenTable = {}
    for side, logprobs_ in (("student", student), ("teacher", teacher)):
        if logprobs_ is None:
            continue
        mass = logprobs_[:, ids].exp().sum(-1)
        table[f"rollout/eos_mass_{side}"] = torch.where(last.to(mass.device), mass, torch.nan)
    return table


def own_stops(
    student: Tensor,
    teacher: Tensor | None,
    reward: Tensor,
    ended: Tensor,
    stop_ids: frozenset[int],
) -> TokenTable:
    """Where the student ended a rollout by itself, NaN elsewhere; [N].

    What both sides think of the student's own stop ids there, and the reward of stopping. A teacher
    that stops at other ids gives these nothing.
    """
    masses = stop_masses(student, teacher, ended, stop_ids)
    table = {key.replace("rollout/eos_mass_", "stop/"): mass for key, mass in masses.items()}
    return table | {"stop/reward": torch.where(ended.to(reward.device), reward, torch.nan)}
