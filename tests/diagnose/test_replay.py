"""Steps of a run again, with and without a change."""

import json
import shutil
from dataclasses import replace

import pytest

from helpers import read_jsonl
from tutelage.cli import main
from tutelage.config import Sampled, TopK, load_config
from tutelage.diagnose.explaining import explain
from tutelage.errors import UsageError
from tutelage.replaying import apply_change, replay


def everything(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_a_lower_learning_rate_mends_what_a_high_one_broke(fault_runs, capsys):
    run = fault_runs["learning_rate"]
    before, beside = everything(run), sorted(run.parent.iterdir())
    assert main(["explain", str(run), "--replay", "6", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["replay"]
    assert told["cause"] == "learning_rate"
    assert told["from_step"] == 0  # every checkpoint is of a student that was broken already
    assert told["start"]["accuracy"] > 0.2
    assert told["without"]["accuracy"] < 0.1
    assert told["without"]["update/kl"] > 10 * told["with"]["update/kl"]
    gain, low, high = told["accuracy_gain"]
    assert 0 < low < gain < high
    assert gain == pytest.approx(told["with"]["accuracy"] - told["without"]["accuracy"])
    assert everything(run) == before
    assert sorted(run.parent.iterdir()) == beside


def test_without_the_change_a_replay_is_the_run_itself(fault_runs, tmp_path):
    """From a checkpoint, to the bit."""
    run = shutil.copytree(fault_runs["healthy"], tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "step-16")
    found = explain(run)
    cause = replace(explain(fault_runs["learning_rate"]).causes[0], change={"optimizer.lr": 1e-6})
    again = replay(replace(found, causes=(cause,)), 4)
    last = read_jsonl(run / "metrics.jsonl")[-1]
    assert (again.start, again.start + again.steps) == (12, last["step"])
    for key in ("accuracy", "kl/reverse", "rollout/length"):
        assert again.without[key] == last[key]
    assert again.changed["kl/reverse"] != last["kl/reverse"]
    assert "against learning_rate" in again.summary()


def test_what_cannot_be_replayed_is_said(fault_runs, tmp_path):
    with pytest.raises(UsageError, match=r"no cause found .* proposes a setting"):
        replay(fault_runs["same_model"], 2)
    with pytest.raises(UsageError, match="is no cause that was found"):
        replay(fault_runs["learning_rate"], 2, cause="template")
    with pytest.raises(UsageError, match="shows nothing"):
        replay(fault_runs["learning_rate"], 0)
    (tmp_path / "trainer_state.json").write_text(
        json.dumps({"log_history": [{"step": 1, "loss": 1.0}]})
    )
    with pytest.raises(UsageError, match="another library"):
        replay(tmp_path, 2)


def test_a_change_replaces_a_whole_section_and_leaves_the_rest(fault_runs):
    config = load_config(fault_runs["healthy"] / "config.yaml")
    config = apply_change(config, {"objective": {"type": "sampled", "bound": 1.0}})
    assert isinstance(config.objective, Sampled)
    changed = apply_change(config, {"objective": {"type": "top_k"}, "rollout.delay_steps": 2})
    assert changed.objective == TopK()
    assert changed.rollout == config.rollout.model_copy(update={"delay_steps": 2})
    assert changed.optimizer == config.optimizer


def test_every_change_that_a_rule_proposes_is_a_setting(fault_runs):
    from planted import PROPOSING

    from tutelage.signals.ranking import rank

    proposed = [cause for history in PROPOSING for cause in rank(history) if cause.change]
    assert {c.name for c in proposed} >= {
        *("template", "precision", "response_limit", "truncated_support", "reward_tail"),
        *("stale_rollouts", "learning_rate", "thinking_pattern", "length_collapse"),
        *("length_inflation", "repetition", "entropy_collapse", "unreliable_depth", "non_finite"),
    }
    for history in PROPOSING:
        for cause in rank(history):
            apply_change(history.config, cause.change)
