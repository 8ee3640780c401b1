"""`tutelage export verl` without verl: what is written, refused and told."""

import json
import math

import pytest
import torch

from tutelage.cli import main
from tutelage.config import TopK, parse_config
from tutelage.data.prompts import load_prompts, read_prompts
from tutelage.errors import UsageError
from tutelage.exporting.verl import export_verl
from tutelage.exporting.verl_loss import top_k_losses
from tutelage.lab.embedded import EMBEDDED_SPEC, model_path
from tutelage.lab.tasks import write_prompts
from tutelage.objective import token_losses


@pytest.fixture
def make(tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    write_prompts(prompts, EMBEDDED_SPEC.task.train_prompts(30, 0))

    def settings(**sections):
        tree = {
            "student": {"path": str(model_path("student"))},
            "teacher": {"path": str(model_path("compatible"))},
            "data": {"prompts": str(prompts), "held_out": 6, "verifier": "numeric"},
            "rollout": {"prompts_per_step": 8},
            "objective": {"support": "teacher", "k": 4},
            "run": {"dir": str(tmp_path / "run")},
        }
        for name, section in sections.items():
            kept = {} if "type" in section else tree.get(name, {})
            tree[name] = {**kept, **section}
        return parse_config(tree)

    return settings


def test_its_rows_are_read_back_as_the_same_prompts(make, tmp_path):
    config = make()
    export_verl(config, tmp_path / "out")
    before = {p.id: p for p in load_prompts(config.data.prompts)}
    parts = [read_prompts(str(tmp_path / "out" / f"{n}.parquet")) for n in ("train", "test")]
    assert [len(part.prompts) for part in parts] == [24, 6]
    for part in parts:
        assert part.layout.name == "verl"
        for prompt in part.prompts:
            assert prompt.messages == before[prompt.id].messages
            assert prompt.answer == before[prompt.id].answer


def test_prompts_of_its_own_are_written_into_the_rows(make, tmp_path):
    config = make(student={"system_prompt": "a1", "user_prompt": "b2 {question}"})
    export_verl(config, tmp_path / "out")
    first = load_prompts(str(tmp_path / "out" / "train.parquet"))[0]
    assert [turn.role for turn in first.messages] == ["system", "user"]
    assert first.messages[1].content.startswith("b2 a")


def test_the_command_writes_a_script_that_starts_verl(make, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(make().model_dump(mode="json")))
    words = ["export", "verl", "-c", str(path), "-o", str(tmp_path / "out")]
    assert main([*words, "--run.steps", "7", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {f.name for f in (tmp_path / "out").iterdir()} == set(told["files"])
    assert "trainer.total_training_steps=7" in (tmp_path / "out" / "overrides.txt").read_text()
    assert "verl.trainer.main_ppo" in (tmp_path / "out" / "run.sh").read_text()
    assert main(words) == 2
    assert "is not empty; --overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert main(["export", "verb"]) == 2
    assert "Did you mean 'verl'" in capsys.readouterr().err


REFUSED = {
    "its teacher tells its own likely tokens": {"objective": {"support": "union"}},
    "objective.type full": {"objective": {"type": "full"}},
    "ramp needs": {"objective": {"divergence": {"type": "mix", "ramp": {"high": 2.0}}}},
    "objective.baseline": {"objective": {"type": "sampled", "baseline": "kl"}},
    "objective.weight position": {"objective": {"weight": "position"}},
    "objective.prompt_weight teacher_gate": {"objective": {"prompt_weight": "teacher_gate"}},
    "objective.target arithmetic": {"objective": {"target": "arithmetic"}},
    "objective.brake": {"objective": {"brake": {"coefficient": 0.1}}},
    "objective.return_to_go": {"objective": {"return_to_go": 0.9}},
    "objective.reward": {"objective": {"reward": {}}, "rollout": {"group_size": 2}},
    "teacher.type ema": {"teacher": {"type": "ema", "context": "answer"}},
    "reads the student's ids": {"teacher": {"system_prompt": "a1"}},
    "teacher.server": {"teacher": {"server": {"url": "http://127.0.0.1:1"}}},
    "student.server": {
        "student": {"server": {"url": "http://127.0.0.1:1", "weights": "elsewhere"}}
    },
    "student.chat_template": {"student": {"chat_template": "other.jinja"}},
    "data.use_chat_template is off": {"data": {"use_chat_template": False}},
    "rollout.temperature 0.7": {"rollout": {"temperature": 0.7}},
    "student_share": {"rollout": {"student_share": 0.5}},
    "rollout.horizon growing": {"rollout": {"horizon": {"start": 2, "steps": 4}}},
    "steps_per_generation": {"rollout": {"steps_per_generation": 2}},
    "control fixed_advantage": {"control": {"type": "fixed_advantage"}},
    "both lengths are one": {"evaluation": {"max_new_tokens": 7}},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_verl_cannot_do_is_refused_before_anything_is_written(make, tmp_path, message):
    with pytest.raises(UsageError, match="verl cannot run this") as refused:
        export_verl(make(**REFUSED[message]), tmp_path / "out")
    assert message in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_gpus_that_cannot_share_a_step_are_refused(make, tmp_path):
    with pytest.raises(UsageError, match="8 rollouts of a step are shared by 3 GPUs"):
        export_verl(make(), tmp_path / "out", gpus=3)


def test_no_setting_is_dropped_without_a_word(make, tmp_path):
    # What differs from the default is in the overrides, or refused, or told by its name.
    changed = {
        "student": {"attention": "eager"},
        "guards": {"stop": ["non_finite"]},
        "evaluation": {"patience": 3},
        "run": {"max_hours": 2.0, "metrics_k": 3, "record_rollouts": 1},
        "distributed": {"type": "ddp"},
    }
    notes = export_verl(make(**changed), tmp_path / "out").notes
    told = next(note for note in notes if note.startswith("not carried over: "))
    assert told == (
        "not carried over: distributed, evaluation.patience, guards.stop, run.max_hours, "
        "run.metrics_k, run.record_rollouts, student.attention"
    )
    lora = {"student": {"lora": {"rank": 4, "merge": False}}}
    assert export_verl(make(**lora), tmp_path / "lora").notes[-1] == (
        "not carried over: student.lora.merge"
    )
    assert not [n for n in export_verl(make(), tmp_path / "two").notes if "not carried" in n]


def test_rows_that_verl_pads_give_no_loss_and_no_gradient():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 9, generator=draw, requires_grad=True)
    teacher = torch.randn(5, 9, generator=draw).log_softmax(-1)
    likely = teacher.topk(3)
    padded = likely.values.clone()
    padded[2] = 0.0
    objective = TopK(support="teacher", k=3)
    losses = top_k_losses(objective, logits, likely.indices, padded)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    kept = [0, 1, 3, 4]
    expected = token_losses(
        objective, logits.log_softmax(-1), teacher, torch.zeros(5, dtype=torch.long)
    ).losses
    (wanted,) = torch.autograd.grad(expected[kept].sum(), logits)
    assert losses[2] == 0
    torch.testing.assert_close(losses[kept], expected[kept])
    torch.testing.assert_close(gradient, wanted)
    assert math.isfinite(gradient.abs().sum())
