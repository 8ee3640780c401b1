"""What a run does about numbers, memory, disks and neighbours that fail it."""

import errno
import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_resume import kept

from helpers import read_jsonl
from tutelage import beginning
from tutelage import trainer as trainers
from tutelage.beginning import resume_run, start_run
from tutelage.cli import main
from tutelage.errors import CheckpointError, DataError, GuardStop, MachineError, UsageError
from tutelage.models.local import LocalModel
from tutelage.models.memory import halve_until_it_fits, out_of_memory
from tutelage.runs.checkpoints import newest_checkpoint, saved_steps
from tutelage.runs.directory import Run
from tutelage.runs.lock import LOCK, locked
from tutelage.training import train

FULL = OSError(errno.ENOSPC, "No space left on device")
MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"),
    MemoryError(),
]


def failing(whole, error, calls):
    """The function, raising at the calls whose number (from 1) `calls` holds."""
    count = 0

    def wrapped(*args, **kwargs):
        nonlocal count
        count += 1
        if count in calls:
            raise error
        return whole(*args, **kwargs)

    return wrapped


# --- numbers ---------------------------------------------------------------------------------


def loss_is_infinite(result, student):
    return replace(result, loss=torch.inf)


def gradient_is_infinite(result, student):
    next(student.model.parameters()).grad.view(-1)[0] = torch.inf
    return result


def score_is_undefined(result, student):
    """The teacher did not score one token, though loss and gradient are finite."""
    result.table["teacher_logprob"][7] = torch.nan
    return result


@pytest.mark.parametrize("spoil", [loss_is_infinite, gradient_is_infinite, score_is_undefined])
def test_a_step_that_is_not_finite_is_neither_taken_nor_saved_and_is_kept_to_look_at(
    settings, monkeypatch, spoil
):
    trainer = start_run(settings(), lambda record: None)
    trainer.evaluate()
    trainer.update(trainer.next_rollouts())
    student = trainer.models.student
    before = [p.detach().clone() for p in student.model.parameters()]
    rollouts, accumulate = trainer.next_rollouts(), trainers.accumulate
    with monkeypatch.context() as patch:
        patch.setattr(trainers, "accumulate", lambda *a, **k: spoil(accumulate(*a, **k), student))
        trainer.update(rollouts)
    assert not trainer.applied
    assert all(map(torch.equal, before, student.model.parameters()))
    assert not any(p.grad is not None for p in student.model.parameters())
    (event,) = [e for e in read_jsonl(trainer.run.events) if e["event"] == "not_applied"]
    assert event["step"] == 2
    assert event["batch"] == [[r.prompt.id, r.index] for r in rollouts]
    assert bool(event["undefined"]) == (spoil is score_is_undefined)
    lines = read_jsonl(trainer.run.path / event["file"])
    asked = event["undefined"] or event["batch"]
    assert sorted([line["id"], line["index"]] for line in lines) == sorted(asked)
    trainer.update(trainer.next_rollouts())  # the next one is sound
    assert trainer.applied


def test_a_run_of_them_ends_with_7_and_says_what_to_do(settings, monkeypatch):
    accumulate = trainers.accumulate

    def always(*args, **kwargs):
        result = accumulate(*args, **kwargs)
        result.table["teacher_logprob"][0] = torch.nan
        return result

    monkeypatch.setattr(trainers, "accumulate", always)
    config = settings(guards={"non_finite_limit": 3}, run={"steps": 30, "save_every": 1})
    with pytest.raises(GuardStop, match="non_finite") as caught:
        train(config)
    assert caught.value.exit_code == 7
    run = Run(Path(config.run.dir))
    assert not saved_steps(run.checkpoints)
    assert [r["applied"] for r in read_jsonl(run.metrics) if r["kind"] == "train"] == [False] * 3


def test_completions_that_end_at_once_count_without_dividing_by_nothing(settings, monkeypatch):
    sample = LocalModel.sample

    def short(self, *args, **kwargs):
        drawn = sample(self, *args, **kwargs)
        return [
            replace(r, completion_ids=r.completion_ids[:1], logprobs=r.logprobs[:1]) for r in drawn
        ]

    monkeypatch.setattr(LocalModel, "sample", short)
    result = train(settings(run={"steps": 2}))
    for record in read_jsonl(result.run / "metrics.jsonl"):
        assert all(v == v and abs(v) < 1e9 for v in record.values() if isinstance(v, float))


# --- memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", MEMORY, ids=lambda e: type(e).__name__)
def test_a_step_that_memory_does_not_hold_is_taken_in_smaller_parts(
    settings, tmp_path, monkeypatch, error
):
    """Five of twelve rollouts at once, then two: the same gradient but for rounding."""
    plain = train(settings(run={"dir": str(tmp_path / "plain")})).run
    backward = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", failing(backward, error, {2}))
    told = []
    short = train(settings(), observer=told.append).run
    assert any("memory was full" in record.get("text", "") for record in told)
    (event,) = [e for e in read_jsonl(short / "events.jsonl") if e["event"] == "out_of_memory"]
    assert event["micro_batch_size"] == 2
    first, again = (
        next(r for r in read_jsonl(run / "metrics.jsonl") if r["kind"] == "train")
        for run in (plain, short)
    )
    assert again["loss"] == pytest.approx(first["loss"], rel=1e-5)
    assert again["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-4)
    state = json.loads((short / "checkpoints" / "step-4" / "state.json").read_text())
    assert state["loop"]["micro_batch_size"] == 2  # a resumed run need not find out anew


def test_a_resumed_run_remembers_what_memory_holds(settings, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", failing(torch.Tensor.backward, MEMORY[0], {2}))
        train(settings(run={"steps": 2}))
    assert resume_run(settings(), lambda record: None).micro_batch_size == 2


def test_sampling_that_memory_does_not_hold_gives_the_same_rollouts(settings, monkeypatch):
    trainer = start_run(settings(), lambda record: None)
    expected = trainer.sample(trainer.prompts_of(0), 0)
    decode = sys.modules["tutelage.models.local"].decode
    monkeypatch.setattr("tutelage.models.local.decode", failing(decode, MEMORY[0], {1, 3}))
    again = trainer.sample(trainer.prompts_of(0), 0)
    assert [r.completion_ids for r in again] == [r.completion_ids for r in expected]
    assert trainer.models.student.batch_size == 3  # 12, 6, 3


def test_one_rollout_that_memory_does_not_hold_is_an_error_that_says_what_to_do(settings):
    def never(*args, **kwargs):
        raise MEMORY[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", never)
        with pytest.raises(MachineError, match=r"single rollout.*max_new_tokens") as caught:
            train(settings())
    assert caught.value.exit_code == 5


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    assert not out_of_memory(RuntimeError("shape mismatch"))
    assert not out_of_memory(ValueError("out of memory"))
    with pytest.raises(RuntimeError, match="shape"):
        halve_until_it_fits(failing(int, RuntimeError("shape mismatch"), {1}), 4, print, "")


# --- the disk --------------------------------------------------------------------------------


def test_a_save_that_the_disk_does_not_take_is_tried_once_more_without_old_ones(
    settings, monkeypatch
):
    from tutelage.runs import checkpoints

    monkeypatch.setattr(checkpoints, "save_file", failing(checkpoints.save_file, FULL, {3}))
    result = train(settings(run={"save_every": 1, "keep": 9}, evaluation={"every": 0}))
    assert sorted(saved_steps(result.run / "checkpoints")) == [2, 3, 4]


def test_a_disk_that_stays_full_ends_the_run_and_keeps_the_newest_checkpoint(settings, monkeypatch):
    from tutelage.runs import checkpoints

    save_file = checkpoints.save_file
    config = settings(run={"save_every": 1}, evaluation={"every": 0})
    monkeypatch.setattr(checkpoints, "save_file", failing(save_file, FULL, {3, 4}))
    with pytest.raises(
        MachineError, match=r"takes \d+ MiB and [\d,]+ are free.*--resume"
    ) as caught:
        train(config)
    assert caught.value.exit_code == 5
    root = Path(config.run.dir) / "checkpoints"
    assert not list(root.glob("tmp.*"))
    assert newest_checkpoint(root)[0].step == 2
    monkeypatch.setattr(checkpoints, "save_file", save_file)
    assert train(config, resume=True).step == 4


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_records_that_the_disk_does_not_take_wait_for_it_in_their_order(settings, tmp_path):
    straight = train(settings(run={"dir": str(tmp_path / "straight")})).run
    told = []
    run = tmp_path / "run"

    def fill(record):
        told.append(record)
        if record["kind"] == "eval" and record["step"] == 0:
            (run / "metrics.jsonl").rename(run / "kept")
            (run / "metrics.jsonl").symlink_to("/dev/full")
        if record["kind"] == "train" and record["step"] == 1:
            (run / "metrics.jsonl").unlink()
            (run / "kept").rename(run / "metrics.jsonl")

    train(settings(), observer=fill)
    assert [r["text"] for r in told if "wait in memory" in r.get("text", "")]
    assert kept(run)["metrics.jsonl"] == kept(straight)["metrics.jsonl"]


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounts a small disk")
def test_a_real_disk_fills_up_and_nothing_good_is_lost(settings, written, tmp_path):
    """In a mount namespace of its own, with room for two checkpoints of some 110 KiB."""
    (tmp_path / "disk").mkdir()
    run = tmp_path / "disk" / "run"
    long = {"dir": str(run), "steps": 40, "save_every": 1, "keep": 40, "record_rollouts": 1}
    path = written(run=long, evaluation={"every": 0})
    script = (
        f"mount -t tmpfs -o size=320k none {tmp_path}/disk && "
        f"{sys.executable} -m tutelage train -c {path}; code=$?; "
        f"cp -r {run} {tmp_path}/copy; exit $code"
    )
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, timeout=120
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no mounts here: {done.stderr[:80]}")
    assert done.returncode == 5, done.stderr
    assert "MiB and" in done.stderr
    assert "Traceback" not in done.stderr
    assert newest_checkpoint(tmp_path / "copy" / "checkpoints")[0].step >= 1


def test_a_place_that_cannot_be_written_is_known_before_models_are_loaded(
    settings, tmp_path, monkeypatch
):
    monkeypatch.setattr(beginning, "prepare", lambda *a: pytest.fail("models were loaded"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be"):
        train(settings(run={"dir": str(tmp_path / "file" / "run")}))
    with pytest.raises(UsageError, match="cannot be written to"):
        train(settings(run={"dir": "/proc/run"}))


def test_a_run_directory_is_its_owners_alone(settings):
    run = train(settings(run={"steps": 1})).run
    assert stat.S_IMODE(run.stat().st_mode) == 0o700


# --- neighbours ------------------------------------------------------------------------------


def test_a_second_process_in_a_run_directory_is_told_who_has_it(zygote, written, tmp_path):
    path = written(run={"steps": 1})
    with locked(tmp_path / "run"):
        status, told = zygote.run("train", "-c", path)
        assert status == 2
        assert f"in use by process {os.getpid()} on " in told
    assert zygote.run("train", "-c", path)[0] == 0


def test_the_lock_of_a_killed_process_holds_nobody_up(zygote, written):
    path = written()
    killed = {"where": "torch.optim:AdamW.step", "call": 2, "do": "SIGKILL"}
    assert zygote.run("train", "-c", path, faults=[killed])[0] == -9
    assert zygote.run("train", "-c", path, "--resume")[0] == 0


def test_a_run_that_does_not_start_leaves_no_directory_and_no_lock(settings, tmp_path):
    with pytest.raises(DataError):
        train(settings(rollout={"prompts_per_step": 1000}))
    assert not (tmp_path / "run").exists()
    result = train(settings(run={"steps": 1}))
    assert (result.run / LOCK).exists()


# --- what a resumed run may change -----------------------------------------------------------


def test_changes_are_listed_and_refused_unless_they_are_named(settings, tmp_path, capsys):
    train(settings(run={"steps": 2}))
    changed = {"optimizer": {"lr": 1e-4}, "rollout": {"temperature": 0.5}}
    with pytest.raises(
        UsageError, match=r"lr was 0.003 and is 0.0001.*--allow-change optimizer.lr"
    ):
        train(settings(**changed), resume=True)
    with pytest.raises(UsageError, match=r"rollout\.temperature was 1\.0"):
        train(settings(**changed), resume=True, allow_change=["optimizer.lr"])
    told = []
    names = ["optimizer.lr", "rollout"]
    result = train(settings(**changed), resume=True, allow_change=names, observer=told.append)
    assert any("optimizer.lr was" in record.get("text", "") for record in told)
    metrics = read_jsonl(result.run / "metrics.jsonl")
    assert [r["lr"] for r in metrics if r["kind"] == "train"] == [3e-3, 3e-3, 1e-4, 1e-4]
    (event,) = [e for e in read_jsonl(result.run / "events.jsonl") if e["event"] == "resume"]
    assert len(event["changed"]) == 2
    train(settings(**changed), resume=True)  # they are the run's settings now


def test_a_change_that_does_not_exist_or_cannot_be_is_refused(settings, gpt2_pair):
    train(settings(run={"steps": 1}))
    with pytest.raises(UsageError, match=r"no setting 'optimizer.rate'"):
        train(settings(), resume=True, allow_change=["optimizer.rate"])
    other = settings(student={"path": str(gpt2_pair[1])})
    with pytest.raises(UsageError, match=r"student.path was .*the student's never"):
        train(other, resume=True, allow_change=["student"])
    with pytest.raises(UsageError, match="leave it out"):
        train(settings(), overwrite=True, allow_change=["optimizer.lr"])


def test_the_command_names_changes(written, capsys):
    path = written(run={"steps": 1})
    assert main(["train", "-c", str(path)]) == 0
    words = ["train", "-c", str(path), "--resume", "--run.steps", "2", "--optimizer.lr", "1e-4"]
    assert main(words) == 2
    assert "--allow-change optimizer.lr" in capsys.readouterr().err
    assert main([*words, "--allow-change", "optimizer.lr"]) == 0


# --- what is resumed, and what is kept -------------------------------------------------------


def test_a_run_that_was_killed_before_its_first_save_begins_again(zygote, written, tmp_path):
    path = written(run={"save_every": 50, "steps": 4}, evaluation={"every": 0})
    killed = {"where": "torch.optim:AdamW.step", "call": 4, "do": "SIGKILL"}
    assert zygote.run("train", "-c", path, faults=[killed])[0] == -9
    assert zygote.run("train", "-c", path, "--resume")[0] == 0
    steps = [r["step"] for r in read_jsonl(tmp_path / "run" / "metrics.jsonl")]
    assert steps == [0, 1, 2, 3, 4, 4]


def test_resume_begins_where_nothing_is_so_one_command_serves_every_sitting(settings):
    told = []
    result = train(settings(), resume=True, observer=told.append)
    assert result.step == 4
    assert any("nothing to resume" in record.get("text", "") for record in told)


def test_a_checkpoint_without_its_optimizer_is_refused_and_its_weights_are_offered(settings):
    result = train(settings(run={"keep": 1, "save_every": 0}, evaluation={"every": 0}))
    (result.checkpoint / "optimizer.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"optimizer.safetensors is missing.*--student.path .*step-4"
    ):
        train(settings(run={"keep": 1, "save_every": 0}, evaluation={"every": 0}), resume=True)
    flipped = bytearray((result.checkpoint / "model.safetensors").read_bytes())
    flipped[-1] ^= 1
    (result.checkpoint / "model.safetensors").write_bytes(flipped)
    with pytest.raises(CheckpointError) as caught:
        newest_checkpoint(result.run / "checkpoints")
    assert "--student.path" not in str(caught.value)


def test_the_best_k_are_kept_besides_the_newest(settings):
    config = settings(
        run={"steps": 8, "save_every": 1, "keep": 1, "keep_best": 3},
        evaluation={"every": 1, "metric": "reverse_kl"},
        optimizer={"lr": 3e-2},
    )
    result = train(config)
    found = {
        r["step"]: r["kl/reverse"]
        for r in read_jsonl(result.run / "metrics.jsonl")
        if r["kind"] == "eval" and r["step"]
    }
    best = sorted(found, key=lambda step: found[step])[:3]
    assert set(saved_steps(result.run / "checkpoints")) == {*best, 8}


def test_other_versions_than_the_run_began_with_are_told(settings):
    run = train(settings(run={"steps": 1})).run
    began = json.loads((run / "environment.json").read_text())
    began["versions"]["torch"] = "1.0"
    (run / "environment.json").write_text(json.dumps(began))
    told = []
    train(settings(run={"steps": 2}), resume=True, observer=told.append)
    assert [r["text"] for r in told if "torch was 1.0 and is" in r.get("text", "")]


# --- answers that never end ------------------------------------------------------------------


def test_answers_that_never_end_are_a_signal_that_says_where_to_look(settings):
    told = []
    config = settings(
        rollout={"max_new_tokens": 2},
        evaluation={"every": 0},
        guards={"window": 3},
        run={"steps": 4},
    )
    result = train(config, observer=told.append)
    (signal,) = [r for r in told if r["kind"] == "signal" and r["name"] == "response_limit"]
    assert "max_new_tokens" in signal["advice"]
    assert [e["name"] for e in read_jsonl(result.run / "events.jsonl") if e["event"] == "signal"]
