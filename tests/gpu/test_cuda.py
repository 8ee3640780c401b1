"""What holds on a CUDA device: the same mathematics, the same run twice, full memory, NCCL.

`make test-gpu` runs it; it fails where torch sees no GPU.
"""

import os
import subprocess
import sys

import pytest
import torch

from helpers import draw_rollouts, read_jsonl, save_tiny_llama, tiny_run
from tutelage import config as c
from tutelage.beginning import start_run
from tutelage.config import Config, dump_config, parse_config
from tutelage.gradient import Models, accumulate
from tutelage.lab.embedded import EMBEDDED_SPEC, VERIFIER, model_path
from tutelage.lab.tasks import write_prompts
from tutelage.models.loading import load_model
from tutelage.training import train

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def gpu():
    assert torch.cuda.is_available(), "these tests need a CUDA device, and torch sees none"
    return torch.device("cuda")


@pytest.fixture
def settings(gpt2_pair, tmp_path):
    return tiny_run(tmp_path, *gpt2_pair, lr=3e-3)


def gradient(models: Models, rollouts, objective, size=5) -> torch.Tensor:
    network = models.student.model
    network.zero_grad()
    accumulate(
        models,
        objective,
        rollouts,
        micro_batch_size=size,
        aggregation="token_mean",
        overlap_k=4,
    )
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def pair_on(device: str, folders, **settings) -> Models:
    student, teacher = (
        load_model(c.LocalModelConfig(path=str(f), device=device, **settings), role)
        for f, role in zip(folders, ("student", "teacher"), strict=True)
    )
    vocabulary = min(student.vocabulary, teacher.vocabulary)
    student.vocabulary = teacher.vocabulary = vocabulary
    for parameter in teacher.model.parameters():
        parameter.requires_grad_(False)
    return Models(student=student, teacher=teacher, references={})


OBJECTIVES = {
    "full": c.Full(),
    "forward": c.Full(divergence=c.ForwardKL()),
    "jsd": c.Full(divergence=c.JSD(beta=0.3)),
    "top_k": c.TopK(k=8),
    "union": c.TopK(k=8, support="union"),
    "sampled": c.Sampled(),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_are_those_of_the_cpu(gpt2_pair, name):
    there, here = pair_on("cuda", gpt2_pair), pair_on("cpu", gpt2_pair)
    rollouts = draw_rollouts(here.student, 12)
    expected = gradient(here, rollouts, OBJECTIVES[name])
    for size in (1, 5, 12):
        found = gradient(there, rollouts, OBJECTIVES[name], size).cpu()
        assert (found - expected).norm() < 1e-4 * expected.norm()


def test_the_same_draws_give_the_same_completions_as_on_the_cpu(gpt2_pair):
    there, here = pair_on("cuda", gpt2_pair).student, pair_on("cpu", gpt2_pair).student
    found, expected = draw_rollouts(there, 40), draw_rollouts(here, 40)
    same = [
        (a, b) for a, b in zip(found, expected, strict=True) if a.completion_ids == b.completion_ids
    ]
    assert len(same) >= 39  # a draw within rounding of an edge may fall to the neighbour
    for a, b in same:
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def losses(run) -> list[float]:
    return [r["loss"] for r in read_jsonl(run / "metrics.jsonl") if r["kind"] == "train"]


def test_the_same_seed_gives_the_same_run_and_resume_goes_on(settings, tmp_path):
    """To rounding: sums of gradients are taken in no fixed order there."""

    def run(name, steps, **how):
        config = settings(run={"dir": str(tmp_path / name), "steps": steps, "save_every": 2})
        return train(config, **how)

    straight, again = run("straight", 6), run("again", 6)
    print("bitwise again:", losses(straight.run) == losses(again.run))
    assert losses(again.run)[:3] == pytest.approx(losses(straight.run)[:3], rel=1e-4)
    run("resumed", 2)
    resumed = run("resumed", 6, resume=True)
    print("bitwise resumed:", losses(straight.run) == losses(resumed.run))
    assert losses(resumed.run)[:3] == pytest.approx(losses(straight.run)[:3], rel=1e-4)


def embedded(tmp_path, **changes) -> Config:
    prompts = tmp_path / "prompts.jsonl"
    write_prompts(prompts, EMBEDDED_SPEC.task.train_prompts(2000, 0))
    tree = {
        "student": {"path": str(model_path("student"))},
        "teacher": {"path": str(model_path("compatible"))},
        "data": {"prompts": str(prompts), "held_out": 300, "verifier": VERIFIER},
        "rollout": {"prompts_per_step": 64, "max_new_tokens": 28},
        "optimizer": {"lr": 1e-3},
        "evaluation": {"every": 0},
        "run": {"dir": str(tmp_path / "run"), "steps": 80, "save_every": 0},
    }
    for name, section in changes.items():
        tree[name] = {**tree[name], **section}
    return parse_config(tree)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_embedded_pair_learns(tmp_path, precision):
    config = embedded(tmp_path, optimizer={"precision": precision}, teacher={"dtype": precision})
    result = train(config)
    print(precision, result.first["accuracy"], result.last["accuracy"])
    assert result.first["accuracy"] < 0.5
    assert result.last["accuracy"] > 0.85


def test_checkpointed_layers_give_the_same_gradient_in_less_memory(tmp_path, settings):
    taken, found = {}, {}
    for on in (False, True):
        config = embedded(
            tmp_path, student={"gradient_checkpointing": on}, run={"dir": str(tmp_path / f"{on}")}
        )
        trainer = start_run(config, lambda record: None)
        rollouts = trainer.next_rollouts()
        torch.cuda.reset_peak_memory_stats()
        found[on] = gradient(trainer.models, rollouts, c.Full(), 64)
        taken[on] = torch.cuda.max_memory_allocated()
    print(taken, float((found[True] - found[False]).norm() / found[False].norm()))
    assert (found[True] - found[False]).norm() <= 1e-5 * found[False].norm()
    assert taken[True] < taken[False]


def test_full_memory_halves_the_batches_and_changes_nothing_else(tmp_path):
    """Room for some of a step's rollouts at once, and not for all of them."""
    losses_of, events = {}, {}
    for name in ("roomy", "narrow"):
        config = embedded(
            tmp_path,
            run={"dir": str(tmp_path / name), "steps": 2},
            rollout={"prompts_per_step": 512},
            optimizer={"micro_batch_size": 512},
        )
        if name == "narrow":
            allowed = torch.cuda.max_memory_allocated() * 0.6
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(allowed / total)
        else:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            result = train(config)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        losses_of[name] = losses(result.run)
        events[name] = [e["event"] for e in read_jsonl(result.run / "events.jsonl")]
    print(events)
    assert losses_of["narrow"] == pytest.approx(losses_of["roomy"], rel=1e-4)
    assert len(events["narrow"]) > len(events["roomy"])


def torchrun(file, ranks) -> subprocess.CompletedProcess:
    words = ["torchrun", "--standalone", "--nproc-per-node", str(ranks), "-m", "tutelage"]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words[1:], "train", "-c", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_a_rank_over_nccl_trains_as_a_process_alone(tmp_path, kind):
    folders = [save_tiny_llama(tmp_path / n, seed=i) for i, n in enumerate(("one", "two"))]
    make = tiny_run(tmp_path, *folders, lr=3e-3)
    alone = train(make(run={"dir": str(tmp_path / "alone")}))
    config = make(distributed={"type": kind})
    (tmp_path / "run.yaml").write_text(dump_config(config))
    done = torchrun(tmp_path / "run.yaml", 1)
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses(tmp_path / "run") == pytest.approx(losses(alone.run), rel=1e-5)


def test_two_ranks_on_one_gpu_are_told_so(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    (tmp_path / "run.yaml").write_text(dump_config(settings(distributed={"type": "ddp"})))
    done = torchrun(tmp_path / "run.yaml", 2)
    assert done.returncode != 0
    assert "ranks 0 and 1 were given one GPU" in done.stderr
