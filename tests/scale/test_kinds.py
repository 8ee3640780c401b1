"""Adapters, a moving average that teaches and probes: at two ranks as in one process."""

import json

import pytest
import torch
from safetensors.torch import load_file
from test_together import LATE, close, records

from helpers import save_tiny_llama, write_jsonl
from tutelage.lab.embedded import EMBEDDED_SPEC, VERIFIER, model_path

STEPS = {"steps": 2, "save_every": 1, "keep": 9}


def both(pair, written, **settings):
    """The same run in one process and at two ranks."""
    alone, together = (
        written(**settings, distributed={"type": kind, **more})
        for kind, more in (("none", {}), ("ddp", {"silence_s": 20}))
    )
    status, told = pair.zygotes[0].run("train", "-c", alone)
    assert status == 0, told
    pair.good("train", "-c", together)
    return alone, together


def saved(path, name, step=2):
    return load_file(path.parent / "run" / "checkpoints" / f"step-{step}" / name)


def moved(path, name):
    """How far the weights of a file went between the steps."""
    first, last = saved(path, name, 1), saved(path, name)
    return max(float((last[n] - first[n]).abs().max()) for n in last)


def assert_records_agree(alone, together):
    one, other = records(alone), records(together)
    assert len(one) == len(other)
    for here, there in zip(one, other, strict=True):
        assert here.keys() == there.keys()
        for key, value in here.items():
            near = value if isinstance(value, str) else pytest.approx(value, abs=1e-4, rel=1e-3)
            assert there[key] == near, key


@pytest.mark.slow
def test_an_adapter_learns_at_two_ranks_what_it_learns_in_one_process(pair, written, tmp_path):
    student = save_tiny_llama(tmp_path / "llama")
    alone, together = both(
        pair,
        written,
        student={"path": str(student), "lora": {"rank": 2, "alpha": 4}},
        rollout=LATE,
        run=STEPS,
    )
    assert_records_agree(alone, together)
    name = "adapter_model.safetensors"
    assert moved(alone, name) > 1e-4
    assert close(saved(alone, name), saved(together, name), 1e-5)


def test_a_moving_average_that_teaches_follows_at_two_ranks_as_in_one_process(pair, written):
    teacher = {"type": "ema", "decay": 0.5, "user_prompt": "{answer}! {question}"}
    alone, together = both(pair, written, teacher=teacher, rollout=LATE, run=STEPS)
    assert_records_agree(alone, together)
    name = "average.safetensors"
    for path in (alone, together):
        before, student, after = (
            saved(path, name, 1),
            saved(path, "model.safetensors"),
            saved(path, name),
        )
        assert close({n: before[n].lerp(student[n], 0.5) for n in after}, after, 1e-7)
        assert moved(path, name) > 1e-4
    # AdamW moves a weight whose gradient is zero but for rounding, as a key's bias is, either way.
    near = [(saved(alone, name)[n] - t).abs() < 1e-5 for n, t in saved(together, name).items()]
    assert torch.cat([part.flatten() for part in near]).float().mean() > 0.98


@pytest.mark.slow
def test_a_probe_finds_at_two_ranks_what_it_finds_in_one_process(pair, written, tmp_path):
    rows = [
        {"id": p.id, "messages": [{"role": "user", "content": p.question}], "answer": p.answer}
        for p in EMBEDDED_SPEC.task.eval_prompts(24, seed=3)
    ]
    prompts = write_jsonl(tmp_path / "prompts.jsonl", rows)
    alone, together = both(
        pair,
        written,
        student={"path": str(model_path("student"))},
        teacher={"path": str(model_path("compatible"))},
        data={"prompts": str(prompts), "held_out": 8, "verifier": VERIFIER.model_dump()},
        rollout={"max_new_tokens": 28, "prompts_per_step": 4},
        evaluation={"every": 0},
        align={
            "spines": 2,
            "samples": 4,
            "rollouts": 4,
            "probe": {"every": 1, "questions": 8, "budget": 6000},
        },
        run={"steps": 1, "save_every": 0},
    )
    found = [[r for r in records(path) if r["kind"] == "probe"] for path in (alone, together)]
    assert [[record["step"] for record in side] for side in found] == [[0, 1], [0, 1]]
    assert json.dumps(found[0][0]) == json.dumps(found[1][0])  # the weights of the start
    assert found[0][0]["alignment/tokens"] > 0
    assert found[0][1].keys() == found[1][1].keys()
