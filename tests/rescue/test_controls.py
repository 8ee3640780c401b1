"""Controls: matched arms, seed by seed, with paired intervals."""

import json
import math
from statistics import fmean, stdev

import pytest

from helpers import read_jsonl, tiny_run
from tutelage.cli import main
from tutelage.config import dump_config, parse_config
from tutelage.errors import UsageError
from tutelage.ops.intervals import mean_interval
from tutelage.rescue import controls as module
from tutelage.rescue.controls import compare, controls, imitating
from tutelage.rescue.controls_summary import summary


@pytest.fixture
def config(gpt2_pair, tmp_path):
    tree = tiny_run(tmp_path, *gpt2_pair, lr=3e-3)().model_dump(mode="json")
    tree["teacher"] = {"type": "initial", "user_prompt": "{answer}! {question}"}
    tree["run"]["steps"] = 2
    return parse_config(tree)


class Killed(Exception):
    """Stands for a process that ends without a word."""


def without_runs(found):
    return found.to_dict()


def test_every_arm_and_seed_is_run_once_and_a_kill_changes_nothing(config, tmp_path, monkeypatch):
    whole = controls(config, tmp_path / "whole", seeds=2)
    lines = read_jsonl(tmp_path / "whole" / "results.jsonl")
    arms = ["distil", "sft", "shuffled_teacher", "wrong_context", "fixed_advantage"]
    assert {line["unit"] for line in lines} == {f"{a}/{s}" for a in arms for s in (0, 1)}
    assert len(lines) == 10
    assert [arm.arm for arm in whole.arms] == ["start", *arms]
    assert not list((tmp_path / "whole").rglob("*.safetensors"))
    original, left = module.train, [3]

    def train(*args, **named):
        left[0] -= 1
        if not left[0]:
            raise Killed
        return original(*args, **named)

    monkeypatch.setattr(module, "train", train)
    with pytest.raises(Killed):
        controls(config, tmp_path / "broken", seeds=2)
    monkeypatch.undo()
    again = controls(config, tmp_path / "broken", seeds=2, resume=True)
    assert again.to_dict() == whole.to_dict()
    told = summary(whole)
    assert all(arm in told for arm in arms)
    assert all(arm.values.keys() == {0, 1} for arm in whole.arms)


def test_imitation_takes_the_runs_steps_rollouts_and_learning_rate(config):
    own = config.model_copy(
        update={"optimizer": config.optimizer.model_copy(update={"warmup_steps": 1})}
    )
    settings = imitating(own, seed=4).cold_start
    assert settings.steps == own.run.steps
    assert settings.batch_size == own.rollout.prompts_per_step * own.rollout.group_size
    assert (settings.lr, settings.schedule) == (own.optimizer.lr, own.optimizer.schedule)
    assert math.ceil(settings.warmup * settings.steps) == 1
    assert (settings.validation, settings.patience) == (0, 0)


def test_differences_are_paired_by_seed_with_students_interval():
    own, other = [0.5, 0.6, 0.9], [0.4, 0.55, 0.7]
    records = [
        {"arm": arm, "seed": seed, "accuracy": value, "start/accuracy": 0.3}
        for arm, values in (("distil", own), ("sft", other))
        for seed, value in enumerate(values)
    ]
    found = {arm.arm: arm for arm in compare(records, {}).arms}
    differences = [a - b for a, b in zip(own, other, strict=True)]
    half = 4.302653 * stdev(differences) / math.sqrt(3)  # the 97.5 % quantile for two degrees
    low, high = found["sft"].difference_interval
    assert found["sft"].difference == pytest.approx(fmean(differences))
    assert (low, high) == pytest.approx((fmean(differences) - half, fmean(differences) + half))
    assert found["start"].difference == pytest.approx(fmean(own) - 0.3)
    assert found["distil"].difference is None
    assert mean_interval([0.5]) is None


def test_the_mean_interval_holds_the_mean_as_often_as_it_says():
    import numpy as np

    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        low, high = mean_interval(rng.normal(1.0, 2.0, 5).tolist())
        held += low <= 1.0 <= high
    assert abs(held / 2000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_what_does_not_apply_is_left_out_with_its_reason_or_refused(gpt2_pair, tmp_path):
    plain = tiny_run(tmp_path, *gpt2_pair, lr=1e-3)(rollout={"student_share": 0.5})
    chosen, left_out = module._applying(plain, None)
    assert chosen == ["distil", "sft", "shuffled_teacher"]
    assert set(left_out) == {"wrong_context", "fixed_advantage"}
    for arms, told in ((["wrong_context"], "does not apply"), (["magic"], "no control")):
        with pytest.raises(UsageError, match=told):
            module._applying(plain, arms)
    with pytest.raises(UsageError, match="at least 2"):
        controls(plain, tmp_path / "c", seeds=1)


def test_the_command_prints_a_table_and_json(gpt2_pair, tmp_path, capsys):
    config = tiny_run(tmp_path, *gpt2_pair, lr=3e-3)(run={"steps": 1}, data={"verifier": None})
    (tmp_path / "run.yaml").write_text(dump_config(config))
    words = ["rescue", "controls", "-c", str(tmp_path / "run.yaml"), "-o", str(tmp_path / "c")]
    few = ["--seeds", "2", "--arms", "fixed_advantage"]
    assert main([*words, *few, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metric"] == "kl/reverse"
    assert [arm["arm"] for arm in found["arms"]] == ["start", "distil", "fixed_advantage"]
    assert main([*words, *few, "--resume"]) == 0
    assert "its control: every sampled token" in capsys.readouterr().out
    assert main([*words, *few]) == 2
