"""From answers and token tables to numbers with intervals; questions are the independent units."""

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np
import torch

from tutelage.alignment.bench import kind_of
from tutelage.config import Objective
from tutelage.evaluation import Evaluation, Question
from tutelage.gradient import Models, measure
from tutelage.metrics import (
    Record,
    TokenTable,
    area_under_curve,
    repetition,
    sequence_rewards,
)
from tutelage.models.local import LocalModel
from tutelage.ops.intervals import (
    bootstrap_interval,
    difference_interval,
    independent_difference_interval,
    pass_at_k,
    proportion_interval,
    ratio_interval,
)
from tutelage.types import Rollout

_MICRO_BATCH = 32
_UNLIKELY = math.log(0.1)
_IMPASSABLE = math.log(1e-3)
_NEARLY_ALL = 0.8
"""Share of an answer's tokens."""
_DRAWS = 500
_WITH_INTERVALS = (
    *("overlap/ratio", "overlap/advantage", "overlap/mass_student", "overlap/mass_teacher"),
    *("entropy/student", "entropy/teacher", "entropy/gap", "kl/reverse", "kl/forward"),
    *("reward/mean", "support/student_mass", "support/teacher_mass", "support/tail_loss"),
    *("rollout/eos_mass_student", "rollout/eos_mass_teacher"),
)
_STYLE = frozenset(
    (
        *("wait", "hmm", "okay", "ok", "so", "well", "now", "let", "maybe", "perhaps"),
        *("actually", "alternatively", "first", "then", "next", "therefore", "thus", "hence"),
        *("finally", "however"),
    )
)
"""Words of manner rather than matter, in lower case."""


def grouped(rollouts: Sequence[Rollout], samples: int, *, was_judged: bool) -> Evaluation:
    """Rollouts of equally many samples a question, as an evaluation."""
    return Evaluation(
        tuple(Question(tuple(rollouts[i : i + samples])) for i in range(0, len(rollouts), samples)),
        was_judged=was_judged,
    )


def agree(
    models: Models, rollouts: Sequence[Rollout], k: int, objective: Objective | None = None
) -> tuple[TokenTable, torch.Tensor]:
    """Token table of rollouts under a pair, and the rollout of each token.

    With an `objective`, what its support holds belongs to it.
    """
    return measure(
        models, rollouts, micro_batch_size=_MICRO_BATCH, overlap_k=k, objective=objective
    )


def kinds_of(
    student: LocalModel,
    stop_ids: frozenset[int],
    rollouts: Sequence[Rollout],
    table: TokenTable,
    rows: torch.Tensor,
) -> dict[str, dict[str, Any]]:
    """Share of the tokens and of the reverse KL that falls on each kind of token.

    `stop` ends a completion, `template` is another special token that prompts hold too (the chat
    template wrote it there), `special` one that they do not.
    """
    ids = [i for r in rollouts for i in r.completion_ids]
    marked = {*student.tokenizer.all_special_ids, *student.tokenizer.added_tokens_decoder}
    in_prompts = {i for r in rollouts for i in r.prompt_ids}

    def kind(token: int, text: str) -> str:
        if token in stop_ids:
            return "stop"
        if token in marked:
            return "template" if token in in_prompts else "special"
        return "style" if text.strip().lower() in _STYLE else kind_of(text)

    names = [kind(*pair) for pair in zip(ids, student.tokens(ids), strict=True)]
    divergence = table["kl/reverse"].double().clamp_min(0)
    units = unit_sums(rollouts, rows, torch.stack([torch.ones_like(divergence), divergence]))
    found: dict[str, dict[str, Any]] = {}
    for name in sorted(set(names)):
        mine = torch.tensor([n == name for n in names], dtype=torch.float64)
        part = unit_sums(rollouts, rows, torch.stack([mine, divergence * mine]))
        found[name] = {"tokens": float(part[0].sum() / units[0].sum())}
        if units[1].sum() > 0:
            found[name]["kl"] = float(part[1].sum() / units[1].sum())
            interval = ratio_interval(part[1].tolist(), units[1].tolist())
            if interval is not None:
                found[name]["kl_interval"] = list(interval)
    return found


def unit_sums(
    rollouts: Sequence[Rollout], rows: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Sums [..., questions] of what each token has [..., N]."""
    places: dict[str, int] = {}
    for rollout in rollouts:
        places.setdefault(rollout.prompt.id, len(places))
    of_token = torch.tensor([places[r.prompt.id] for r in rollouts])[rows]
    sums = torch.zeros((*values.shape[:-1], len(places)), dtype=torch.float64)
    return sums.index_add_(-1, of_token, values.double())


def token_mean(
    rollouts: Sequence[Rollout], rows: torch.Tensor, values: torch.Tensor
) -> dict[str, Any]:
    """Mean over all tokens with its interval, questions as units."""
    totals, counts = unit_sums(rollouts, rows, torch.stack([values, torch.ones_like(values)]))
    told: dict[str, Any] = {"value": float(totals.sum() / counts.sum())}
    if (interval := ratio_interval(totals.tolist(), counts.tolist())) is not None:
        told["interval"] = list(interval)
    return told


def familiar_answers(
    rollouts: Sequence[Rollout], logprobs: torch.Tensor, rows: torch.Tensor
) -> tuple[list[Rollout], dict[str, Any]]:
    """Answers that a model might have written: nearly all of their tokens are likely to it.

    With their share and its interval over questions. An answer in another pattern has many tokens
    that the model finds impossible; a mistake, or a step it cannot do, makes a few.

    Args:
        rollouts: the answers.
        logprobs: the model's log-probability of every token [N].
        rows: which answer each token is of [N].
    """
    likely = (logprobs >= _UNLIKELY).double()
    counts = torch.bincount(rows, minlength=len(rollouts)).double()
    sums = torch.zeros(len(rollouts), dtype=torch.float64).index_add_(0, rows, likely)
    is_familiar = (sums >= _NEARLY_ALL * counts) & (counts > 0)
    shares = _by_question(rollouts, is_familiar.double().tolist())
    low, high = proportion_interval(shares)
    chosen = [r for r, known in zip(rollouts, is_familiar.tolist(), strict=True) if known]
    return chosen, {"value": fmean(shares), "interval": [low, high]}


def intervals_of(
    rollouts: Sequence[Rollout], table: TokenTable, rows: torch.Tensor
) -> dict[str, tuple[float, float]]:
    """95 % intervals of the metrics of a step, questions as units, by the metric's key."""
    found: dict[str, tuple[float, float]] = {}
    for key, values in table.items():
        if key not in _WITH_INTERVALS:
            continue
        known = ~values.isnan()
        pair = torch.stack([torch.where(known, values, 0.0).double(), known.double()])
        totals, counts = unit_sums(rollouts, rows, pair).tolist()
        if (interval := ratio_interval(totals, counts)) is not None:
            found[key] = interval
    cut = _by_question(rollouts, [float(r.finish_reason == "length") for r in rollouts])
    found["rollout/truncated"] = proportion_interval(cut)
    if repeated := _by_question(rollouts, [repetition(r.completion_ids) for r in rollouts]):
        found["rollout/repetition"] = proportion_interval(repeated)
    lengths = _by_question(rollouts, [float(len(r.completion_ids)) for r in rollouts])
    if (interval := ratio_interval(lengths, [1.0] * len(lengths))) is not None:
        found["rollout/length"] = interval
    if (interval := _auroc_interval(rollouts, table, rows)) is not None:
        found["sequence_reward/auroc"] = interval
    return found


def _by_question(rollouts: Sequence[Rollout], values: Sequence[float | None]) -> list[float]:
    """Mean of each question that has any."""
    parts: dict[str, list[float]] = {}
    for rollout, value in zip(rollouts, values, strict=True):
        if value is not None:
            parts.setdefault(rollout.prompt.id, []).append(value)
    return [fmean(part) for part in parts.values()]


def _auroc_interval(
    rollouts: Sequence[Rollout], table: TokenTable, rows: torch.Tensor
) -> tuple[float, float] | None:
    """By resampling questions with all their rollouts."""
    parts: dict[str, list[tuple[float, float]]] = {}
    for rollout, reward in zip(rollouts, sequence_rewards(table, rows, len(rollouts)), strict=True):
        if reward is not None and rollout.reward is not None:
            parts.setdefault(rollout.prompt.id, []).append((reward, rollout.reward))
    units = list(parts.values())

    def auroc(chosen: np.ndarray) -> float | None:
        pairs = [pair for i in chosen for pair in units[int(i)]]
        right = [reward for reward, verdict in pairs if verdict >= 0.5]
        return area_under_curve(right, [reward for reward, verdict in pairs if verdict < 0.5])

    return (
        bootstrap_interval([np.arange(len(units), dtype=float)], auroc, draws=_DRAWS)
        if units
        else None
    )


def capability_of(student: Evaluation, teacher: Evaluation, samples: int) -> Record:
    """Accuracy and pass@k of both sides, the gaps paired by question, who solves what alone."""
    ours = {q.rollouts[0].prompt.id: q for q in student.questions if q.judged}
    theirs = {q.rollouts[0].prompt.id: q for q in teacher.questions if q.judged}
    names = [name for name in ours if name in theirs]
    if not names:
        return {}
    pairs = [(ours[name], theirs[name]) for name in names]
    record: Record = {"questions": len(names), "samples": samples}
    columns = {
        "accuracy": [(fmean(a.judged), fmean(b.judged)) for a, b in pairs],
        f"pass@{samples}": [
            (_pass(a, samples), _pass(b, samples))
            for a, b in pairs
            if min(len(a.judged), len(b.judged)) >= samples
        ],
    }
    for key, values in columns.items():
        if not values:
            continue
        own, other = [s for s, _ in values], [t for _, t in values]
        low, high = difference_interval(other, own)
        record[key] = {
            "student": fmean(own),
            "teacher": fmean(other),
            "gap": fmean(other) - fmean(own),
            "gap_low": low,
            "gap_high": high,
        }
    solved = [(max(a.judged) > 0, max(b.judged) > 0) for a, b in pairs]
    record["solved_by_teacher_alone"] = fmean(t and not s for s, t in solved)
    record["solved_by_student_alone"] = fmean(s and not t for s, t in solved)
    return record


def _pass(question: Question, k: int) -> float:
    return pass_at_k(round(sum(question.judged)), len(question.judged), k)


def passable_answers(
    answers: Sequence[Rollout], logprobs: torch.Tensor, rows: torch.Tensor
) -> dict[str, Any]:
    """Share of familiar answers without any token that the student would hardly ever draw.

    The reverse KL pulls on a token in proportion to its probability, so one impossible token, where
    the pattern is chosen, is enough to keep the student out.
    """
    least = torch.zeros(len(answers), dtype=torch.float64).scatter_reduce(0, rows, logprobs, "amin")
    familiar = {id(r) for r in familiar_answers(answers, logprobs, rows)[0]}
    passes = [
        float(id(r) in familiar and low >= _IMPASSABLE)
        for r, low in zip(answers, least.tolist(), strict=True)
    ]
    shares = _by_question(answers, passes)
    return {"value": fmean(shares), "interval": list(proportion_interval(shares))}


def novelty_of(models: Models, answers: Evaluation, asked: Sequence[Rollout], k: int) -> Record:
    """What the student, asked as in `asked`, thinks of the teacher's right answers.

    Absent where the teacher gave none.
    """
    prompts = {r.prompt.id: r.prompt_ids for r in asked}
    right = [
        replace(r, prompt_ids=prompts[r.prompt.id], teacher_prompt_ids=r.prompt_ids)
        for r in answers.rollouts
        if r.reward == 1 and r.completion_ids
    ]
    if not right:
        return {}
    table, rows = agree(models, right, k)
    logprobs = table["student_logprob"].double()
    within_reach, passable = (
        familiar_answers(right, logprobs, rows)[1],
        passable_answers(right, logprobs, rows),
    )
    told: Record = {
        "answers": len(right),
        "tokens": len(logprobs),
        "within_reach": within_reach["value"],
        "within_reach_interval": within_reach["interval"],
        "passable": passable["value"],
        "passable_interval": passable["interval"],
    }
    for key, values in (
        ("surprise", -logprobs),
        ("unlikely", (logprobs < _UNLIKELY).double()),
    ):
        told[key] = values.mean().item()
        totals, counts = unit_sums(
            right, rows, torch.stack([values, torch.ones_like(values)])
        ).tolist()
        if (interval := ratio_interval(totals, counts)) is not None:
            told[f"{key}_interval"] = list(interval)
    return told


def accuracy_of(answers: Evaluation) -> tuple[float, float, float] | None:
    """Accuracy with the ends of its interval over questions; None where none was judged."""
    if not answers.accuracies:
        return None
    return fmean(answers.accuracies), *proportion_interval(answers.accuracies)


def accuracy_difference(first: Evaluation, second: Evaluation) -> dict[str, Any] | None:
    """First minus second accuracy: paired where the questions are the same, else apart.

    None where either was not judged.
    """
    one, other = _accuracies(first), _accuracies(second)
    if not one or not other:
        return None
    shared = [name for name in one if name in other]
    if shared:
        a, b = [one[name] for name in shared], [other[name] for name in shared]
        interval = difference_interval(a, b)
    else:
        a, b = list(one.values()), list(other.values())
        interval = independent_difference_interval(a, b)
    return {"value": fmean(a) - fmean(b), "interval": list(interval), "paired": bool(shared)}


def _accuracies(answers: Evaluation) -> dict[str, float]:
    return {q.rollouts[0].prompt.id: fmean(q.judged) for q in answers.questions if q.judged}
