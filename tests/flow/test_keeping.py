"""What a run keeps: checkpoints, stop requests, resumes, and what it says on the way."""

import errno
import json
import os
import shutil
import signal

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from helpers import read_jsonl, sums, write_jsonl
from tutelage import signals
from tutelage.beginning import resume_run, start_run
from tutelage.errors import CheckpointError, GuardStop, Interrupted, MachineError, UsageError
from tutelage.reports.page import write_report
from tutelage.runs import checkpoints
from tutelage.runs.checkpoints import newest_checkpoint, saved_steps
from tutelage.runs.interrupts import Interrupts
from tutelage.runs.rollouts import rollout_from_json, rollout_to_json
from tutelage.training import run_steps, train


class Killed(Exception):
    """Stands for a process that ends without a word."""


def flip_last_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def steps_kept(result):
    return sorted(saved_steps(result.run / "checkpoints"))


def without_times(path):
    return [
        {k: v for k, v in record.items() if not k.startswith("perf/")}
        for record in read_jsonl(path / "metrics.jsonl")
    ]


# --- damaged checkpoints ---------------------------------------------------------------------


def test_damaged_checkpoints_are_set_aside_and_never_push_out_good_ones(settings):
    every = {"save_every": 1, "keep": 1, "steps": 3}
    result = train(settings(run=every, evaluation={"every": 0}))
    root = result.run / "checkpoints"
    shutil.copytree(root / "step-3", root / "step-9")
    (root / "step-9" / "state.json").write_text("{}")
    (root / "best.json").write_text('{"step": 9}')
    more = settings(run={**every, "steps": 5}, evaluation={"every": 0})
    again = train(more, resume=True)
    assert again.step == 5
    assert 5 in steps_kept(again)
    assert (root / "damaged.step-9").is_dir()
    resumed = next(e for e in read_jsonl(result.run / "events.jsonl") if e["event"] == "resume")
    assert resumed["step"] == 3
    assert resumed["set_aside"] == ["damaged.step-9"]
    assert newest_checkpoint(root)[0].step == 5
    best = root / "best.json"
    assert not best.exists() or json.loads(best.read_text())["step"] in steps_kept(again)


@pytest.mark.parametrize(
    "manifest",
    [
        "[]",
        "null",
        "{",
        '{"files": 3}',
        '{"files": {}}',
        '{"files": {"state.json": 3}}',
        '{"files": {"state.json": {"size": 2}}}',
    ],
)
def test_a_manifest_that_vouches_for_nothing_is_damaged(settings, manifest):
    result = train(settings(run={"steps": 1, "save_every": 0}))
    (result.checkpoint / "MANIFEST.json").write_text(manifest)
    with pytest.raises(CheckpointError, match="step-1: its manifest"):
        newest_checkpoint(result.run / "checkpoints")


@pytest.mark.parametrize("left_out", ["state.json", "optimizer.safetensors", "model.safetensors"])
def test_a_manifest_must_list_state_optimizer_and_weights(settings, left_out):
    result = train(settings(run={"steps": 1, "save_every": 0}))
    path = result.checkpoint / "MANIFEST.json"
    manifest = json.loads(path.read_text())
    del manifest["files"][left_out]
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="lists no"):
        newest_checkpoint(result.run / "checkpoints")


def test_a_kill_while_a_checkpoint_is_replaced_loses_none(settings, monkeypatch):
    result = train(settings(run={"steps": 1, "save_every": 0}))
    root = result.run / "checkpoints"
    trainer = resume_run(settings(run={"steps": 1, "save_every": 0}), lambda record: None)
    trainer.keeper.saved = None
    rename = checkpoints.Path.rename

    def killed(path, target):
        if path.name.startswith("tmp."):
            raise Killed
        return rename(path, target)

    monkeypatch.setattr(checkpoints.Path, "rename", killed)
    with pytest.raises(Killed):
        trainer.save()
    monkeypatch.undo()
    assert newest_checkpoint(root)[0].step == 1


def test_a_step_is_saved_once(settings, monkeypatch):
    saved = []
    save = checkpoints.save_checkpoint
    monkeypatch.setattr(
        "tutelage.keeping.save_checkpoint", lambda *a: saved.append(a[1]) or save(*a)
    )
    train(settings())
    assert saved == [2, 4]
    train(settings(), resume=True)  # nothing to do, so nothing to save
    assert saved == [2, 4]


# --- what is worth keeping -------------------------------------------------------------------


def test_steps_that_were_not_applied_are_neither_saved_nor_best(settings):
    config = settings(
        run={"save_every": 1, "steps": 9},
        evaluation={"every": 1, "metric": "accuracy"},
        guards={"non_finite_limit": 3},
    )

    def poison(record):
        if record["kind"] == "train" and record["step"] == 2:
            for p in trainer.models.teacher.model.parameters():
                p.fill_(torch.nan)

    trainer = start_run(config, poison)
    with pytest.raises(GuardStop, match=r"another --run.dir and --student.path .*step-2") as caught:
        run_loop(trainer)
    assert caught.value.exit_code == 7
    assert trainer.step == 5
    assert max(saved_steps(trainer.run.checkpoints)) == 2
    assert trainer.keeper.standing.best_step <= 2


def run_loop(trainer):
    with Interrupts() as trainer.interrupts:
        return run_steps(trainer)


def test_weights_that_are_not_finite_are_never_saved(settings):
    trainer = start_run(settings(), lambda record: None)
    with torch.no_grad():
        next(trainer.models.student.model.parameters())[0] = torch.inf
    with pytest.raises(GuardStop, match="not finite at step 0"):
        trainer.save()
    assert not trainer.run.checkpoints.exists()


def test_a_learning_rate_that_explodes_ends_with_the_guard(settings):
    config = settings(optimizer={"lr": 1e30}, run={"steps": 20}, evaluation={"every": 1})
    with pytest.raises(GuardStop, match="--allow-change"):
        train(config)


def test_a_teacher_of_nan_weights_ends_with_the_guard(settings, gpt2_pair, tmp_path):
    shutil.copytree(gpt2_pair[1], tmp_path / "nan")
    path = tmp_path / "nan" / "model.safetensors"
    tensors = {k: v * torch.nan for k, v in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(GuardStop, match="non_finite"):
        train(settings(teacher={"path": str(tmp_path / "nan")}))
    assert "kl/reverse" not in read_jsonl(tmp_path / "run" / "metrics.jsonl")[0]
    assert write_report([tmp_path / "run"]).exists()


def test_an_undefined_divergence_neither_retires_the_teacher_nor_keeps_it():
    records = [{"kl/reverse": 1.0, "accuracy": 1.0}, {"accuracy": 1.0}]
    assert not signals.retired(records, 1.0, 0.9, patience=1)
    assert signals.retired([*records, {"kl/reverse": 1.0, "accuracy": 1.0}], 1.0, 0.9, patience=1)


def test_logits_that_are_nan_still_give_a_valid_id(settings):
    from tutelage.ops.sampling import draw

    for options in ({}, {"top_p": 0.5}, {"temperature": 0}):
        ids, logprob = draw(
            torch.full((3, 7), torch.nan), torch.tensor([0.0, 0.5, 0.99]), **options
        )
        assert ((ids >= 0) & (ids < 7)).all()
        assert logprob.isnan().all()


def test_rollouts_with_undefined_logprobs_are_kept_as_they_are(settings):
    trainer = start_run(settings(), lambda record: None)
    (rollout, *_) = trainer.next_rollouts()
    from dataclasses import replace

    broken = replace(rollout, logprobs=(float("nan"),) * len(rollout.logprobs))
    text = json.dumps(rollout_to_json(broken), allow_nan=False)
    again = rollout_from_json(json.loads(text), {rollout.prompt.id: rollout.prompt})
    assert repr(again) == repr(broken)


# --- requests to stop ------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["eval", "train"])
@pytest.mark.parametrize("delay", [0, 2])
def test_ctrl_c_saves_at_the_next_boundary_and_resumes_to_the_bit(settings, tmp_path, when, delay):
    def config(name):
        return settings(run={"dir": str(tmp_path / name)}, rollout={"delay_steps": delay})

    straight = train(config("straight"))

    def press(record):
        if record["kind"] == when and record["step"] == (0 if when == "eval" else 3):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match=r"stopped by SIGINT at step .*--resume") as caught:
        train(config("stopped"), observer=press)
    assert caught.value.exit_code == 130
    metrics = read_jsonl(tmp_path / "stopped" / "metrics.jsonl")
    # After the first evaluation no step is taken first.
    assert sum(r["kind"] == "train" for r in metrics) == (0 if when == "eval" else 3)
    resumed = train(config("stopped"), resume=True)
    assert without_times(resumed.run) == without_times(straight.run)


@pytest.mark.parametrize("delay", [0, 1])
def test_a_stop_between_sampling_and_training_keeps_the_samples(settings, tmp_path, delay):
    def config(name):
        return settings(run={"dir": str(tmp_path / name)}, rollout={"delay_steps": delay})

    straight = train(config("straight"))
    trainer = start_run(config("stopped"), lambda record: None)
    sample = trainer.sample

    def pressed(prompts, step):
        if step == 1 + delay:
            os.kill(os.getpid(), signal.SIGINT)
        return sample(prompts, step)

    trainer.sample = pressed
    with pytest.raises(Interrupted, match="at step 1,"):
        run_loop(trainer)
    resumed = train(config("stopped"), resume=True)
    assert without_times(resumed.run) == without_times(straight.run)


def test_a_second_ctrl_c_does_not_wait(settings):
    def press_twice(record):
        if record["kind"] == "train":
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(settings(), observer=press_twice)


def test_max_hours_counts_this_sitting_and_ends_without_another_evaluation(settings):
    short = {"max_hours": 1e-9, "steps": 50}
    first = train(settings(run=short, evaluation={"every": 10}))
    assert (first.outcome, first.step) == ("time_limit", 1)
    assert first.last == first.first
    second = train(settings(run=short, evaluation={"every": 10}), resume=True)
    assert second.step == 2  # the first sitting's time does not count again
    third = train(settings(run={"max_hours": 1, "steps": 4}, evaluation={"every": 10}), resume=True)
    assert (third.outcome, third.step) == ("finished", 4)
    assert third.last["step"] == 4


# --- resuming --------------------------------------------------------------------------------


def test_resume_notices_changed_prompts_and_names_the_file(settings, tmp_path):
    config = settings()
    train(config)
    path = tmp_path / "prompts.jsonl"
    write_jsonl(path, [*sums(39), {"question": "What is 39 + 78?", "answer": "1", "id": "sum-39"}])
    with pytest.raises(UsageError, match=r"prompts\.jsonl has changed since the run began"):
        train(settings(run={"steps": 5}), resume=True)
    write_jsonl(path, sums(40))
    assert train(settings(run={"steps": 5}), resume=True).step == 5


def test_resuming_what_is_finished_says_so_and_how_to_go_on(settings):
    train(settings(run={"steps": 2}))
    for steps, finished in ((2, True), (3, False)):
        told = []
        result = train(settings(run={"steps": steps}), resume=True, observer=told.append)
        notes = " ".join(record["text"] for record in told if record["kind"] == "note")
        assert ("all 2 steps were taken before" in notes) == finished
        assert result.step == steps


def test_torn_last_lines_are_cut_before_a_resumed_run_writes(settings):
    result = train(settings())
    names = ("metrics.jsonl", "events.jsonl", "positions.jsonl")
    for name in names:
        with (result.run / name).open("a") as stream:
            stream.write('{"step": 4, "ev')
    train(settings(run={"steps": 5}), resume=True)
    for name in names:
        read_jsonl(result.run / name)


def test_resume_and_overwrite_contradict_each_other(settings):
    with pytest.raises(UsageError, match="give one of them"):
        train(settings(), resume=True, overwrite=True)


def test_a_damaged_run_config_is_named(settings):
    result = train(settings(run={"steps": 1}))
    (result.run / "config.yaml").write_text("a: [\n")
    with pytest.raises(UsageError, match=r"config\.yaml is not YAML"):
        train(settings(run={"steps": 1}), resume=True)


# --- the disk --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left (os error 28)"),
    ],
)
def test_a_full_disk_is_said_with_the_path(settings, monkeypatch, error):
    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(MachineError, match=r"the disk of .*run is full.*--resume") as caught:
        train(settings())
    assert caught.value.exit_code == 5


# --- notes -----------------------------------------------------------------------------------


def test_notes_reach_events_observer_and_screen(settings, tmp_path, capsys):
    rows = [*sums(40), {"question": "1 + " * 60, "answer": "60", "id": "long"}]
    prompts = write_jsonl(tmp_path / "long.jsonl", rows)
    config = settings(data={"prompts": str(prompts), "max_prompt_tokens": 30})
    told = []
    result = train(config, observer=told.append)
    read, *notes = [record for record in told if record["kind"] == "note"]
    assert read["text"].startswith(f"{prompts}: question/answer layout, 41 rows")
    assert [n["text"].split(" longer")[0].split(";")[0] for n in notes] == [
        "dropped 1 training and 0 held-out prompts",
        "the student's head has 300 rows, the teacher's 312",
    ]
    events = {e["event"] for e in read_jsonl(result.run / "events.jsonl")}
    assert {"prompts_read", "prompts_dropped", "vocabularies_differ"} <= events
    from tutelage.cli.progress import Display

    with Display(1) as display:
        display(notes[0])
    err = capsys.readouterr().err
    assert err.startswith("note: dropped 1 training")
    assert err.count("\n") == 1


def test_stored_weights_that_the_model_has_no_place_for_are_noted(settings, gpt2_pair, tmp_path):
    shutil.copytree(gpt2_pair[0], tmp_path / "shallow")
    path = tmp_path / "shallow" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "n_layer": 1}))
    told = []
    train(settings(student={"path": str(tmp_path / "shallow")}), observer=told.append)
    (note,) = [record for record in told if "role" in record]
    assert note["role"] == "student"
    assert "h.1." in note["first"]
