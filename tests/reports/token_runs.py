"""Run directories with rollouts made up of words, at any size, as a run writes them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from helpers import tiny_run

_STARTS = ("the", "so", "we", "find", "that", "first", "then", "value", "of", "answer", "is", "add")
_PARTS = ("con", "ver", "pre", "sum", "ed", "ing", "al", "gra", "di", "ent", "pro", "du", "ct", "x")


def words(size: int) -> list[str]:
    """`size` distinct tokens, frequent ones first; some are no words."""
    rng = np.random.default_rng(0)
    made = ["<end>", "\n", " ", "\n\n", ".", ",", " =", " +", "\\", "  ", "\t", " 1", " 2", " 3"]
    made += [" " + start for start in _STARTS]
    known = set(made)
    while len(made) < size:
        word = "".join(rng.choice(_PARTS, rng.integers(2, 5)))
        word = word if rng.random() < 0.3 else " " + word
        word = word if word not in known else f"{word}{len(made)}"
        known.add(word)
        made.append(word)
    return made


def rollout(
    rng: np.random.Generator, names: Sequence[str], tokens: int, k: int = 16, candidates: int = 64
) -> dict[str, Any]:
    """A record of one rollout: half of its states are settled, a fifth open, as in real answers."""
    size = len(names)
    ids = np.minimum((size ** rng.random((tokens, candidates))).astype(np.int64), size - 1)
    for row in range(tokens):
        distinct = list(dict.fromkeys(ids[row].tolist()))
        others = (i for i in range(size) if i not in distinct)
        ids[row] = distinct + [next(others) for _ in range(candidates - len(distinct))]
    spread = rng.choice([12.0, 5.0, 1.5], tokens, p=[0.5, 0.3, 0.2])[:, None]
    p = rng.gumbel(size=(tokens, candidates)) * spread
    q = p + rng.normal(size=p.shape) * rng.exponential(0.7, tokens)[:, None]
    p -= np.log(np.exp(p).sum(-1, keepdims=True))
    q -= np.log(np.exp(q).sum(-1, keepdims=True))
    chosen = (p + rng.gumbel(size=p.shape)).argmax(-1)
    every = np.arange(tokens)
    likely = {}
    for side, logprobs in (("student", p), ("teacher", q)):
        order = np.argsort(-logprobs, -1)[:, :k]
        likely[side] = {
            "ids": np.take_along_axis(ids, order, -1).tolist(),
            "logprobs": np.take_along_axis(logprobs, order, -1).round(3).tolist(),
        }
    shared = [
        len(set(a) & set(b)) / k
        for a, b in zip(likely["student"]["ids"], likely["teacher"]["ids"], strict=True)
    ]
    completion = ids[every, chosen].tolist()
    listed = {i for side in likely.values() for row in side["ids"] for i in row} | set(completion)
    columns = {
        "overlap/ratio": np.array(shared),
        "overlap/advantage": -rng.exponential(0.05, tokens),
        "entropy/student": -(np.exp(p) * p).sum(-1),
        "entropy/teacher": -(np.exp(q) * q).sum(-1),
        "kl/reverse": (np.exp(p) * (p - q)).sum(-1),
        "reward/mean": (q - p)[every, chosen],
        "student_logprob": p[every, chosen],
        "teacher_logprob": q[every, chosen],
        "weight": 1 + 0.5 * np.linspace(-1, 1, tokens),
    }
    return {
        "completion_ids": completion,
        "tokens": [names[i] for i in completion],
        "scores": {key: values.round(5).tolist() for key, values in columns.items()},
        "likely": likely,
        "vocabulary": {str(i): names[i] for i in sorted(listed)},
        "bytes": {},
        "special": [0],
    }


def write_run(
    folder: Path,
    *,
    steps: Sequence[int] = (0, 40),
    rollouts: int = 4,
    tokens: int = 60,
    vocabulary: int = 2_000,
    distinct: int = 10**6,
    seed: int = 0,
    name: str = "run",
) -> Path:
    """A run directory with that many rollouts at each checkpoint, so many of them `distinct`."""
    from tutelage.config import dump_config

    run = folder / name
    (run / "rollouts").mkdir(parents=True)
    config = tiny_run(folder, folder / "student", folder / "teacher", lr=1e-3)()
    (run / "config.yaml").write_text(dump_config(config))
    (run / "environment.json").write_text("{}")
    names = words(vocabulary)
    made: dict[int, dict[str, Any]] = {}
    for step in steps:
        lines = []
        for i in range(rollouts):
            rng = np.random.default_rng([seed, step, i])
            place = len(lines) % distinct if distinct < rollouts else i + step * 10**6
            content = made.get(place) or rollout(rng, names, tokens)
            made[place] = content
            reward = [1.0, 0.0, None][rng.integers(3)] if i else float(step > 0)
            record = {
                "id": f"q{i}",
                "index": 0,
                "policy_step": step,
                "question": f"Question {i}: what is the sum of the first {i + 3} numbers?",
                "answer": str(i),
                "text": "",
                "reward": reward,
                "finish_reason": "length" if i % 3 == 2 else "stop",
                "prompt_ids": [1, 2],
                **content,
            }
            lines.append(json.dumps(record) + "\n")
        (run / "rollouts" / f"step-{step}.jsonl").write_text("".join(lines))
    return run
