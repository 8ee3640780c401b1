"""The loop end to end on tiny models, and its invariants."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from helpers import read_jsonl, sums, write_jsonl
from tutelage import signals
from tutelage.beginning import start_run
from tutelage.config import Config, OptimizerConfig
from tutelage.credit import token_shares
from tutelage.errors import CheckpointError, GuardStop, UsageError
from tutelage.gradient import accumulate
from tutelage.optimizing import learning_rate
from tutelage.runs.checkpoints import newest_checkpoint
from tutelage.trainer import Trainer
from tutelage.training import train


def trainer_for(config: Config) -> Trainer:
    return start_run(config, lambda record: None)


def gradients(trainer: Trainer, rollouts) -> torch.Tensor:
    student = trainer.models.student.model
    student.zero_grad()
    accumulate(
        trainer.models,
        trainer.config.objective,
        rollouts,
        micro_batch_size=trainer.config.optimizer.micro_batch_size,
        aggregation=trainer.config.optimizer.aggregation,
        overlap_k=4,
    )
    return torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])


def test_training_lowers_the_held_out_reverse_kl_and_leaves_the_evidence(settings):
    config = settings(run={"steps": 30}, evaluation={"every": 10})
    result = train(config)
    assert result.outcome == "finished"
    assert result.last["kl/reverse"] < 0.8 * result.first["kl/reverse"]
    run = result.run
    metrics = read_jsonl(run / "metrics.jsonl")
    assert [m["step"] for m in metrics if m["kind"] == "train"] == list(range(1, 31))
    assert [m["step"] for m in metrics if m["kind"] == "eval"] == [0, 10, 20, 30]
    for record in metrics:
        assert all(v is not None and v == v for v in record.values())
    assert read_jsonl(run / "positions.jsonl")[0]["bins"]["tokens"]
    scores = read_jsonl(run / "rollouts" / "step-30.jsonl")[0]
    assert len(scores["scores"]["kl/reverse"]) == len(scores["completion_ids"])
    assert len(scores["tokens"]) == len(scores["completion_ids"])
    assert (run / "config.yaml").exists()
    assert run.stat().st_mode & 0o777 == 0o700


def test_the_last_checkpoint_loads_in_transformers_with_the_trained_weights(settings):
    result = train(settings())
    trained = AutoModelForCausalLM.from_pretrained(result.checkpoint)
    start = AutoModelForCausalLM.from_pretrained(settings().student.path)
    moved = [
        (a - b).abs().max().item()
        for a, b in zip(trained.parameters(), start.parameters(), strict=True)
    ]
    assert max(moved) > 1e-4


def test_accumulation_and_order_equal_one_big_batch(settings):
    whole = trainer_for(settings(optimizer={"micro_batch_size": 100}))
    rollouts = whole.next_rollouts()
    assert len({len(r.completion_ids) for r in rollouts}) > 2
    expected = gradients(whole, rollouts)
    for size in (1, 5):
        parts = trainer_for(
            settings(optimizer={"micro_batch_size": size}, run={"dir": f"{whole.run.path}-{size}"})
        )
        torch.testing.assert_close(gradients(parts, rollouts), expected, atol=2e-6, rtol=1e-4)
        torch.testing.assert_close(gradients(parts, rollouts[::-1]), expected, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_denominators_span_the_whole_step(settings, aggregation):
    trainer = trainer_for(settings(optimizer={"aggregation": aggregation, "micro_batch_size": 1}))
    rollouts = trainer.next_rollouts()
    lengths = [len(r.completion_ids) for r in rollouts]
    rows = torch.tensor([i for i, n in enumerate(lengths) for _ in range(n)])
    weights = token_shares(aggregation, rows, torch.tensor(lengths))
    assert weights.sum().item() == pytest.approx(1)
    shares = [weights[rows == i].sum().item() for i in range(len(rollouts))]
    if aggregation == "token_mean":
        assert shares == pytest.approx([n / sum(lengths) for n in lengths])
    else:
        assert shares == pytest.approx([1 / len(lengths)] * len(lengths))


def test_token_mean_is_the_global_mean_and_not_the_mean_of_micro_batch_means():
    shares = token_shares("token_mean", torch.tensor([0, 1, 1, 1, 1]), torch.tensor([1, 4]))
    losses = torch.tensor([1.0, 3.0, 3.0, 3.0, 3.0], dtype=torch.float64)
    assert (shares * losses).sum().item() == pytest.approx(2.6)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(settings, tmp_path):
    def losses(name, seed):
        result = train(settings(run={"dir": str(tmp_path / name), "seed": seed}))
        return [r["loss"] for r in read_jsonl(result.run / "metrics.jsonl") if r["kind"] == "train"]

    first = losses("a", 1)
    assert losses("b", 1) == first
    assert losses("c", 2) != first


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors") | load_file(
        checkpoint / "optimizer.safetensors"
    )


@pytest.mark.parametrize("stop_at", [2, 4])
def test_resume_continues_to_the_bit(settings, tmp_path, stop_at):
    schedule = {"schedule": "cosine", "warmup_steps": 2}

    def config(name):
        return settings(run={"dir": str(tmp_path / name), "steps": 6}, optimizer=schedule)

    straight = train(config("straight"))

    class Killed(Exception):
        pass

    def kill(record):
        if record["kind"] == "train" and record["step"] == stop_at + 1:
            raise Killed

    with pytest.raises(Killed):
        train(config("resumed"), observer=kill)
    resumed = train(config("resumed"), resume=True)
    expected, found = weights_of(straight.checkpoint), weights_of(resumed.checkpoint)
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        assert torch.equal(tensor, found[key]), key

    def records(result):
        return [
            {k: v for k, v in record.items() if not k.startswith("perf/")}
            for record in read_jsonl(result.run / "metrics.jsonl")
        ]

    assert records(resumed) == records(straight)
    for written in sorted((straight.run / "rollouts").iterdir()):
        assert (resumed.run / "rollouts" / written.name).read_bytes() == written.read_bytes()


def test_resume_skips_a_damaged_checkpoint_and_says_so(settings):
    result = train(settings())
    damaged = result.run / "checkpoints" / "step-4" / "model.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    train(settings(), resume=True)
    events = read_jsonl(result.run / "events.jsonl")
    resumed = next(e for e in events if e["event"] == "resume")
    assert resumed["step"] == 2
    assert resumed["skipped"] == ["step-4: model.safetensors does not match its hash"]


def test_a_checkpoint_without_its_manifest_was_never_finished(settings):
    result = train(settings())
    root = result.run / "checkpoints"
    for manifest in root.glob("*/MANIFEST.json"):
        manifest.unlink()
    with pytest.raises(CheckpointError, match="step-4: its manifest is missing"):
        newest_checkpoint(root)


def test_resume_with_other_settings_names_each_difference(settings):
    train(settings())
    changed = settings(optimizer={"lr": 1e-4}, rollout={"temperature": 0.5})
    with pytest.raises(UsageError, match=r"optimizer.lr was 0.003 and is 0.0001; rollout.temp"):
        train(changed, resume=True)
    more = settings(run={"steps": 5})
    assert train(more, resume=True).step == 5


def test_a_run_directory_is_never_overwritten_unasked(settings, tmp_path):
    result = train(settings())
    with pytest.raises(UsageError, match=r"--resume.*--overwrite"):
        train(settings())
    assert train(settings(run={"steps": 1}), overwrite=True).step == 1
    assert len(read_jsonl(result.run / "metrics.jsonl")) == 3
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="no run directory"):
        train(settings(run={"dir": str(tmp_path / "mine")}), overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_run_that_cannot_start_leaves_no_directory(settings, tmp_path):
    broken = settings(data={"verifier": "numeric"}, rollout={"prompts_per_step": 1000})
    with pytest.raises(Exception, match="leaves 30 training prompts"):
        train(broken)
    assert not (tmp_path / "run").exists()


def test_non_finite_gradients_are_never_applied_and_end_the_run(settings):
    config = settings(guards={"non_finite_limit": 2})
    trainer = trainer_for(config)
    before = [p.clone() for p in trainer.models.student.model.parameters()]
    with torch.no_grad():
        trainer.models.teacher.model.get_output_embeddings().weight[5, 0] = torch.nan
    trainer.update(trainer.next_rollouts())
    trainer.watch()  # once is not enough
    trainer.update(trainer.next_rollouts())
    with pytest.raises(GuardStop, match="non_finite"):
        trainer.watch()
    for old, new in zip(before, trainer.models.student.model.parameters(), strict=True):
        assert torch.equal(old, new)
    records = read_jsonl(trainer.run.metrics)
    assert [r["applied"] for r in records] == [False, False]
    assert all("loss" not in r for r in records)


def test_early_stop_and_best_checkpoint_follow_the_held_out_metric(settings):
    config = settings(
        optimizer={"lr": 1.0},
        evaluation={"every": 1, "metric": "reverse_kl", "patience": 2},
        run={"steps": 20, "keep": 1},
    )
    result = train(config)
    assert result.outcome == "early_stop"
    assert result.step < 20
    assert result.best_step is None  # each step made it worse, and the start is no checkpoint
    assert not (result.run / "checkpoints" / "best.json").exists()
    elsewhere = {"dir": f"{result.run}-better", "steps": 6, "keep": 1}
    better = train(settings(evaluation={"every": 1, "metric": "reverse_kl"}, run=elsewhere))
    best = json.loads((better.run / "checkpoints" / "best.json").read_text())["step"]
    evaluations = [r for r in read_jsonl(better.run / "metrics.jsonl") if r["kind"] == "eval"]
    assert best == better.best_step == min(evaluations, key=lambda r: r["kl/reverse"])["step"]
    assert (better.run / "checkpoints" / f"step-{best}").is_dir()


def test_max_hours_saves_and_ends(settings):
    result = train(settings(run={"max_hours": 1e-9, "steps": 50}))
    assert (result.outcome, result.step) == ("time_limit", 1)
    assert result.checkpoint.name == "step-1"


def test_held_out_questions_are_in_no_training_prompt(settings, tmp_path):
    rows = [*sums(30), {"question": "What is  3 + 6?", "answer": "9", "id": "copy"}]
    held_out = write_jsonl(tmp_path / "held_out.jsonl", sums(5))
    prompts = write_jsonl(tmp_path / "more.jsonl", rows)
    trainer = trainer_for(settings(data={"prompts": str(prompts), "eval_prompts": str(held_out)}))
    questions = {p.prompt.question for p in trainer.session.prompts}
    assert len(questions) == 25
    assert not questions & {p.prompt.question for p in trainer.session.held_out}
    assert "copy" not in {p.prompt.id for p in trainer.session.prompts}


def test_every_epoch_walks_all_prompts_once_in_an_order_of_its_own(settings):
    trainer = trainer_for(settings())
    epochs, step = [], 0
    for _ in range(2):
        seen = []
        for _ in range(5):
            seen += [p.prompt.id for p in trainer.prompts_of(step)]
            step += 1
        epochs.append(seen)
    assert (
        sorted(epochs[0])
        == sorted(epochs[1])
        == sorted(p.prompt.id for p in trainer.session.prompts)
    )
    assert epochs[0] != epochs[1]


def test_context_that_is_too_short_is_refused_with_the_numbers(settings):
    with pytest.raises(UsageError, match=r"reads 64 tokens.*allows 60 more"):
        train(settings(rollout={"max_new_tokens": 60}))


def test_a_guard_warns_once_in_events_and_stops_when_asked(settings):
    trainer = trainer_for(settings(guards={"window": 1, "length_factor": 1.5}))
    trainer.steps = [{"rollout/length": 10.0}, {"rollout/length": 3.0}]
    trainer.watch()
    trainer.watch()
    events = [e for e in read_jsonl(trainer.run.events) if e["event"] == "signal"]
    assert [e["name"] for e in events] == ["length_collapse"]
    elsewhere = {"dir": f"{trainer.run.path}-stopping"}
    stopping = trainer_for(settings(guards={"window": 1, "stop": True}, run=elsewhere))
    stopping.steps = trainer.steps
    with pytest.raises(GuardStop, match="length_collapse"):
        stopping.watch()


def test_schedules_have_their_closed_forms():
    constant = OptimizerConfig(lr=2.0, warmup_steps=4)
    assert [learning_rate(constant, s, 10) for s in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    cosine = OptimizerConfig(lr=1.0, schedule="cosine")
    assert learning_rate(cosine, 0, 100) == pytest.approx(1.0)
    assert learning_rate(cosine, 50, 100) == pytest.approx(0.55)
    assert learning_rate(cosine, 100, 100) == pytest.approx(0.1)


def test_signals_are_silent_on_a_healthy_run_and_name_a_sick_one():
    healthy = [{"rollout/length": 20 + i % 3, "rollout/truncated": 0.1} for i in range(40)]
    assert signals.length(healthy, 2, 5) is None
    assert signals.truncation(healthy, 0.95, 5) is None
    assert signals.non_finite([{"applied": True}] * 9, 3) is None
    growing = [{"rollout/length": 10.0 * (i + 1), "rollout/truncated": i / 9} for i in range(10)]
    growing += [{"rollout/length": 100.0, "rollout/truncated": 1.0}] * 5
    assert signals.length(growing, 2, 5).name == "length_inflation"
    assert signals.truncation(growing, 0.95, 5).name == "truncation"
    always = [{"rollout/truncated": 1.0}] * 20
    assert signals.truncation(always, 0.95, 5) is None  # it began that way: no change to report


def test_sigterm_saves_and_asks_to_be_resumed(settings):
    import os
    import signal as os_signal

    from tutelage.errors import Preempted

    def terminate(record):
        if record["kind"] == "train" and record["step"] == 3:
            os.kill(os.getpid(), os_signal.SIGTERM)

    with pytest.raises(Preempted, match="SIGTERM at step 3") as caught:
        train(settings(), observer=terminate)
    assert caught.value.exit_code == 75
    assert train(settings(), resume=True).step == 4
