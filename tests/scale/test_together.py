"""Ranks that sample, stop, save and go on as one run."""

import json
import math
import os
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

import tutelage.lab
from helpers import read_jsonl
from tutelage.lab.embedded import EMBEDDED_SPEC
from tutelage.lab.tasks import write_prompts
from tutelage.runs.checkpoints import newest_checkpoint, read_checkpoint

KINDS = ("ddp", "fsdp2")


def records(path):
    """What metrics.jsonl says of a run, but for how long it took."""
    return [
        {key: value for key, value in record.items() if not key.startswith("perf/")}
        for record in read_jsonl(path.parent / "run" / "metrics.jsonl")
    ]


def weights(path, step):
    folder = path.parent / "run" / "checkpoints" / f"step-{step}"
    files = sorted(folder.glob("model*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def pending(path, step):
    state = read_checkpoint(path.parent / "run" / "checkpoints" / f"step-{step}").state
    return [
        [(r["prompt"], r["index"], r["completion_ids"], r["reward"]) for r in rollouts]
        for rollouts in state["pending"]
    ]


def losses(path):
    return [record["loss"] for record in records(path) if record["kind"] == "train"]


def close(one, other, tolerance):
    assert one.keys() == other.keys()
    return max(float((one[n] - other[n]).abs().max()) for n in one) < tolerance


LATE = {
    "prompts_per_step": 6,
    "group_size": 2,
    "max_new_tokens": 10,
    "delay_steps": 1,
    "steps_per_generation": 2,
    "horizon": {"start": 6, "steps": 2},
}
STEPS = {"steps": 4, "save_every": 1, "keep": 9}


@pytest.fixture(scope="module")
def straight(pair, written):
    """The same four steps by one process and by two ranks of each kind, undisturbed."""
    paths = {}
    for kind in ("none", *KINDS):
        path = written(distributed={"type": kind}, rollout=LATE, run=STEPS)
        if kind == "none":
            pair.zygotes[0].run("train", "-c", path)
        else:
            pair.good("train", "-c", path)
        paths[kind] = path
    return paths


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_sample_what_one_process_samples(straight, kind):
    """Also the rollouts that wait for their step, drawn before the first one was taken."""
    assert pending(straight[kind], 1) == pending(straight["none"], 1)
    assert len(pending(straight[kind], 1)[0]) == 12
    alone, together = (
        (straight[which].parent / "run" / "eval" / "step-0.jsonl").read_text()
        for which in ("none", kind)
    )
    assert together == alone


@pytest.mark.parametrize("kind", KINDS)
def test_records_are_of_the_whole_step(straight, kind):
    alone, together = records(straight["none"]), records(straight[kind])
    assert len(together) == len(alone)
    for one, other in zip(alone[:2], together[:2], strict=True):  # the first evaluation and step
        assert one.keys() == other.keys()
        for key, value in one.items():
            near = value if isinstance(value, str) else pytest.approx(value, abs=1e-5, rel=1e-4)
            assert other[key] == near, key
    assert together[1]["loss"] == pytest.approx(alone[1]["loss"], abs=1e-5, rel=0)
    assert together[1]["rollout/count"] == 12
    series = read_jsonl(straight[kind].parent / "run" / "positions.jsonl")
    assert sum(series[0]["bins"]["tokens"]) == together[1]["tokens"]


def test_a_sharded_checkpoint_is_a_file_a_rank_and_an_index_that_transformers_reads(straight):
    from transformers import AutoModelForCausalLM

    folder = straight["fsdp2"].parent / "run" / "checkpoints" / "step-4"
    names = {path.name for path in folder.iterdir()}
    parts = [
        f"{kind}-0000{i}-of-00002.safetensors" for kind in ("model", "optimizer") for i in (1, 2)
    ]
    assert {name for name in names if name.endswith(".safetensors")} == set(parts)
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    held = [set(load_file(folder / name)) for name in parts[:2]]
    assert index["weight_map"] == {n: parts[i] for i in (0, 1) for n in held[i]}
    assert all(held)
    read = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    saved = weights(straight["fsdp2"], 4)
    assert all((read[name] == tensor).all() for name, tensor in saved.items())


@pytest.mark.parametrize("kind", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp2"])
def test_a_rank_that_is_asked_to_stop_ends_all_at_one_step_and_they_go_on_to_the_bit(
    pair, written, straight, kind
):
    path = written(distributed={"type": kind, "silence_s": 20}, rollout=LATE, run=STEPS)
    asked = {"where": "tutelage.models.local:decode", "call": 4, "do": "SIGTERM"}
    for status, told in pair.run("train", "-c", path, faults=((), [asked])):
        assert status == 75, told
    root = path.parent / "run" / "checkpoints"
    assert newest_checkpoint(root)[0].step < 4
    pair.good("train", "-c", path, "--resume")
    assert records(path) == records(straight[kind])
    here, there = weights(path, 4), weights(straight[kind], 4)
    assert all((here[n] == there[n]).all() for n in there)


@pytest.mark.parametrize(("before", "after"), [("fsdp2", "none"), ("none", "fsdp2")])
def test_a_checkpoint_goes_on_at_another_number_of_ranks(pair, written, straight, before, after):
    path = written(distributed={"type": before}, rollout=LATE, run={**STEPS, "steps": 2})
    first = pair.zygotes[0].run if before == "none" else pair.good
    first("train", "-c", path)
    assert newest_checkpoint(path.parent / "run" / "checkpoints")[0].step == 2
    words = ("train", "-c", path, "--resume", "--run.steps", "4", "--distributed", after)
    if after == "none":
        status, told = pair.zygotes[0].run(*words)
        assert status == 0, told
    else:
        pair.good(*words)
    assert losses(path) == pytest.approx(losses(straight["none"]), rel=1e-4)
    student = load_student_of(path)
    assert close(student, weights(path, best_or_last(path)), 1e-9)


def load_student_of(path):
    files = sorted((path.parent / "run" / "student").glob("model*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def best_or_last(path):
    best = path.parent / "run" / "checkpoints" / "best.json"
    return int(best.read_text().split(":")[1].strip(" }")) if best.exists() else 4


def test_ctrl_c_at_the_first_rank_ends_both(pair, written):
    path = written(run={"steps": 200, "save_every": 0}, evaluation={"every": 0})
    pids = pair.start("train", "-c", path)
    metrics = path.parent / "run" / "metrics.jsonl"
    until = time.monotonic() + 60
    while time.monotonic() < until and not (metrics.exists() and len(read_jsonl(metrics)) > 2):
        time.sleep(0.1)
    os.kill(pids[0], signal.SIGINT)
    (first, told), (second, also) = pair.wait()
    assert (first, second) == (130, 130), told + also
    assert (told + also).count("stopped by SIGINT") == 1
    assert newest_checkpoint(path.parent / "run" / "checkpoints")[0].step > 0


def test_memory_that_is_full_on_one_rank_halves_the_parts_of_both(pair, written):
    calm, full = (written(run={"steps": 2}, evaluation={"every": 0}) for _ in range(2))
    fault = {"where": "torch:Tensor.backward", "call": 2, "do": "out of memory"}
    pair.good("train", "-c", calm)
    pair.good("train", "-c", full, faults=((), [fault]))
    events = read_jsonl(full.parent / "run" / "events.jsonl")
    halved = [event for event in events if event["event"] == "out_of_memory"]
    assert [event["micro_batch_size"] for event in halved] == [2]
    assert "rank 1" in halved[0]["text"]
    assert losses(full) == pytest.approx(losses(calm), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_ranks_learn_is_as_good(pair, written, tmp_path, kind):
    """Accuracy on 300 questions, within four standard errors of a difference of two proportions,
    which chance exceeds once in 16,000 tests."""
    task = EMBEDDED_SPEC.task
    write_prompts(tmp_path / "prompts.jsonl", task.train_prompts(1000, 0))
    write_prompts(tmp_path / "held_out.jsonl", task.eval_prompts(300))
    zoo, reached = Path(tutelage.lab.__file__).parent / "zoo", {}
    for which in ("none", kind):
        path = written(
            student={"path": str(zoo / "student")},
            teacher={"path": str(zoo / "compatible")},
            data={
                "prompts": str(tmp_path / "prompts.jsonl"),
                "eval_prompts": str(tmp_path / "held_out.jsonl"),
            },
            rollout={"prompts_per_step": 64, "group_size": 1, "max_new_tokens": 24},
            optimizer={"lr": 1e-3, "betas": [0.9, 0.95]},
            evaluation={"every": 0, "teacher": 0},
            run={"steps": 80, "save_every": 0},
            distributed={"type": which},
        )
        if which == "none":
            status, told = pair.zygotes[0].run("train", "-c", path)
            assert status == 0, told
        else:
            pair.good("train", "-c", path)
        reached[which] = [r["accuracy"] for r in records(path) if r["kind"] == "eval"]
    (before, alone), (also, together) = reached["none"], reached[kind]
    assert before == also
    assert together > before + 0.2
    error = math.sqrt((alone * (1 - alone) + together * (1 - together)) / 300)
    assert abs(alone - together) <= 4 * error + 1 / 300
