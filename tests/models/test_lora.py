"""LoRA students: the same loop on fewer weights."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from helpers import draw_rollouts, read_jsonl
from tutelage.beginning import start_run
from tutelage.config import ModelConfig, StudentConfig
from tutelage.data.collate import collate
from tutelage.errors import UsageError
from tutelage.gradient import accumulate
from tutelage.models.loading import load_model, load_student
from tutelage.models.local import LocalModel
from tutelage.models.served.student import write_weights
from tutelage.planning import plan
from tutelage.training import train

HEAD = ["q_proj", "down_proj", "lm_head", "embed_tokens"]


def lora(**changes) -> dict:
    return {"lora": {"rank": 2, "alpha": 4, **changes}}


def student_of(path, *, shaken: bool = True, **changes) -> LocalModel:
    """A student with an adapter; `shaken` gives it additions other than zero."""
    settings = StudentConfig(path=str(path), **lora(**changes))
    student = load_student(settings, precision="float32", seed=0)
    if shaken:
        torch.manual_seed(5)
        for p in student.model.parameters():
            if p.requires_grad:
                p.data.normal_(std=0.3)
    return student


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(40).reshape(4, 10)).logits


def records(result):
    return [
        {k: v for k, v in r.items() if not k.startswith("perf/")}
        for r in read_jsonl(result.run / "metrics.jsonl")
    ]


def test_training_moves_the_adapter_alone_and_lowers_the_reverse_kl(settings, llamas):
    result = train(settings(student=lora(), run={"steps": 30, "save_every": 0}))
    assert result.last["kl/reverse"] < 0.9 * result.first["kl/reverse"]
    start = load_file(llamas["untied"] / "model.safetensors")
    names = {p.name for p in result.checkpoint.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert not any(name.startswith("model") for name in names)
    merged = AutoModelForCausalLM.from_pretrained(result.student)
    moved = {
        name.rpartition(".")[0].rpartition(".")[2]
        for name, weight in merged.state_dict().items()
        if not torch.equal(weight, start[name])
    }
    linear = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert moved == linear


def test_additions_start_at_no_effect_and_follow_the_seed(llamas):
    plain = load_model(ModelConfig(path=str(llamas["untied"])), "student")
    fresh = student_of(llamas["untied"], shaken=False)
    assert torch.equal(logits(fresh.model), logits(plain.model))
    settings = StudentConfig(path=str(llamas["untied"]), **lora())

    def start(seed):
        torch.manual_seed(seed + 100)  # whatever was drawn before
        model = load_student(settings, precision="float32", seed=seed).model
        return torch.cat([p.flatten() for p in model.parameters() if p.requires_grad])

    assert torch.equal(start(0), start(0))
    assert not torch.equal(start(0), start(1))


@pytest.mark.parametrize("targets", ["all-linear", HEAD])
@pytest.mark.parametrize("kind", [{"type": "top_k", "k": 4}, {"type": "full"}])
def test_chunked_gradients_equal_those_of_the_whole_logits(settings, llamas, targets, kind):
    """With an adapted head too, and against peft's own forward pass."""
    trainer = start_run(
        settings(student=lora(target_modules=targets), objective=kind), lambda record: None
    )
    student = trainer.models.student
    torch.manual_seed(5)
    for p in student.model.parameters():
        if p.requires_grad:
            p.data.normal_(std=0.2)
    rollouts = trainer.next_rollouts()
    found = []
    for head in (student.raw_head, replace(student.raw_head, weight=None, bias=None)):
        student.raw_head = head
        student.model.zero_grad()
        accumulate(
            trainer.models,
            trainer.config.objective,
            rollouts,
            micro_batch_size=5,
            aggregation="token_mean",
            overlap_k=4,
        )
        assert all(p.grad is not None for p in student.model.parameters() if p.requires_grad)
        found.append({n: p.grad for n, p in student.model.named_parameters() if p.requires_grad})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], atol=1e-6, rtol=1e-4, msg=name)
        assert gradient.abs().max() > 0, name


@pytest.mark.parametrize("targets", ["all-linear", HEAD])
def test_sampling_and_scoring_agree_with_an_adapter(llamas, targets):
    student = student_of(llamas["untied"], target_modules=targets)
    rollouts = draw_rollouts(student)
    batch = collate(rollouts)
    scored = student.score(batch).gather(-1, batch.targets.unsqueeze(-1)).squeeze(-1)
    sampled = torch.tensor([x for r in rollouts for x in r.logprobs])
    torch.testing.assert_close(scored, sampled, atol=2e-5, rtol=0)


@pytest.mark.parametrize("targets", ["all-linear", HEAD])
def test_without_the_adapter_it_is_the_model_it_was_added_to(llamas, targets):
    plain = load_model(ModelConfig(path=str(llamas["untied"])), "student")
    student = student_of(llamas["untied"], target_modules=targets)
    base = student.without_adapter()
    rollouts = draw_rollouts(plain)
    batch = collate(rollouts)
    torch.testing.assert_close(base.score(batch), plain.score(batch), atol=1e-6, rtol=0)
    assert (student.score(batch) - plain.score(batch)).abs().max() > 0.1
    assert [r.completion_ids for r in draw_rollouts(base)] == [r.completion_ids for r in rollouts]
    assert any(p.requires_grad for p in student.model.parameters())


def test_the_initial_reference_is_the_student_without_its_adapter(settings, llamas):
    """The brake of a run with LoRA is that of a second copy of the start."""
    brakes = ("initial", {"path": str(llamas["untied"])})
    runs = [
        train(
            settings(
                student=lora(),
                objective={"brake": {"coefficient": 0.5, "reference": reference}},
                run={"dir": str(llamas["untied"].parent / f"brake-{i}")},
            ),
            overwrite=(llamas["untied"].parent / f"brake-{i}").exists(),
        )
        for i, reference in enumerate(brakes)
    ]
    assert records(runs[0]) == records(runs[1])
    trainer = start_run(
        settings(student=lora(), objective={"brake": {"coefficient": 0.5}}), lambda record: None
    )
    assert trainer.models.references["brake"].model is trainer.models.student.model


@pytest.mark.parametrize("targets", ["all-linear", HEAD])
def test_resume_continues_to_the_bit(settings, tmp_path, targets):
    def config(name):
        return settings(
            student=lora(target_modules=targets),
            objective={"brake": {"coefficient": 0.1}},
            run={"dir": str(tmp_path / name), "steps": 6},
        )

    class Killed(Exception):
        pass

    def kill(record):
        if record["kind"] == "train" and record["step"] == 3:
            raise Killed

    straight = train(config("straight"))
    with pytest.raises(Killed):
        train(config("resumed"), observer=kill)
    resumed = train(config("resumed"), resume=True)
    assert records(resumed) == records(straight)
    for file in ("adapter_model.safetensors", "optimizer.safetensors"):
        expected, found = (load_file(r.checkpoint / file) for r in (straight, resumed))
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[k], found[k]) for k in expected)


# peft calls a name that transformers deprecates.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")
@pytest.mark.parametrize("targets", ["all-linear", HEAD])
def test_peft_loads_the_checkpoint_and_transformers_the_merged_student(settings, targets, llamas):
    config = settings(student=lora(target_modules=targets), run={"steps": 3})
    result = train(config)
    step = result.best_step or result.step
    checkpoint = result.run / "checkpoints" / f"step-{step}"
    base = AutoModelForCausalLM.from_pretrained(llamas["untied"])
    plain = logits(base)
    adapted = PeftModel.from_pretrained(base, checkpoint).eval()
    assert (logits(adapted) - plain).abs().max() > 1e-3
    merged = AutoModelForCausalLM.from_pretrained(result.student)
    torch.testing.assert_close(logits(merged), logits(adapted), atol=1e-5, rtol=1e-4)
    ours = load_model(ModelConfig(path=str(checkpoint)), "student")
    torch.testing.assert_close(logits(ours.model), logits(adapted), atol=1e-5, rtol=1e-4)
    stated = json.loads((checkpoint / "adapter_config.json").read_text())
    assert stated["base_model_name_or_path"] == config.student.path


def test_an_adapter_left_unmerged_is_what_the_student_folder_holds(settings):
    result = train(settings(student=lora(merge=False), run={"steps": 1}))
    assert (result.student / "adapter_model.safetensors").is_file()
    assert not (result.student / "model.safetensors").exists()
    assert "library_name: peft" in (result.student / "README.md").read_text()


def test_a_run_can_go_on_from_an_adapter(settings, tmp_path):
    first = train(settings(student=lora(), run={"steps": 2}))
    more = settings(
        student={"path": str(first.checkpoint), **lora()}, run={"dir": str(tmp_path / "more")}
    )
    second = train(more)
    start, end = first.last["kl/reverse"], second.first["kl/reverse"]
    assert end == pytest.approx(start, rel=1e-4)
    AutoModelForCausalLM.from_pretrained(second.student)


def test_head_and_embedding_of_one_weight_cannot_be_adapted(settings, llamas):
    tied = {"path": str(llamas["tied"])}
    with pytest.raises(UsageError, match=r"names lm_head, but in this model"):
        train(settings(student={**tied, **lora(target_modules=["q_proj", "lm_head"])}))
    assert train(settings(student={**tied, **lora()}, run={"steps": 1})).step == 1


def test_layers_that_are_not_there_are_named_with_those_that_are(settings):
    with pytest.raises(UsageError, match=r"target_modules nope: .*called down_proj, gate_proj"):
        train(settings(student=lora(target_modules="nope")))


def test_dropout_is_refused_with_the_reason(settings):
    with pytest.raises(UsageError, match=r"student.lora: dropout cannot be used: the policy"):
        settings(student=lora(dropout=0.1))


def test_frozen_bfloat16_weights_can_be_adapted(settings):
    result = train(settings(student={"dtype": "bfloat16", **lora()}, run={"steps": 8}))
    assert result.last["kl/reverse"] < result.first["kl/reverse"]
    adapter = load_file(result.checkpoint / "adapter_model.safetensors")
    assert {t.dtype for t in adapter.values()} == {torch.float32}
    merged = load_file(result.student / "model.safetensors")
    assert {t.dtype for t in merged.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("untied", "all-linear"),
        ("untied", ["q_proj", "v_proj"]),
        ("untied", HEAD),
        ("tied", "all-linear"),
        ("teacher", "all-linear"),  # a GPT-2
        ("teacher", ["c_attn"]),
    ],
)
def test_plan_counts_what_an_adapter_trains(settings, llamas, name, targets):
    config = settings(student={"path": str(llamas[name]), **lora(target_modules=targets)})
    student = student_of(llamas[name], target_modules=targets)
    trained = sum(p.numel() for p in student.model.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in student.model.parameters()) - trained
    result = plan(config)
    assert result.trained_parameters == trained
    assert result.student_parameters == whole
    assert result.optimizer_bytes == 2 * result.gradient_bytes == 8 * trained


def test_plan_counts_reference_models_and_initial_only_where_it_is_a_copy(settings, llamas):
    teacher = str(llamas["teacher"])
    target = {"type": "extrapolated", "reference": {"path": teacher, "dtype": "bfloat16"}}
    brake = {"coefficient": 0.1}
    for student, copies in (({}, 1), (lora(), 0)):
        result = plan(settings(student=student, objective={"target": target, "brake": brake}))
        student_parameters, parameters = result.student_parameters, result.teacher_parameters
        assert result.reference_parameters == parameters + copies * student_parameters
        assert result.reference_bytes == 2 * parameters + 4 * copies * student_parameters
        bare = plan(settings(student=student))
        hidden = result.hidden_bytes - bare.hidden_bytes
        assert hidden == 4 * (5 * 10) * (24 + 16)  # micro-batch x max_new_tokens x both widths
        assert result.total_bytes - bare.total_bytes == result.reference_bytes + hidden


@pytest.mark.parametrize(
    ("name", "targets"), [("untied", HEAD), ("tied", "all-linear"), ("gpt2", "all-linear")]
)
def test_a_server_gets_the_merged_weights(llamas, tmp_path, name, targets):
    """As `write_weights` leaves them for the server of a served student, step by step."""
    student = student_of(llamas[name], target_modules=targets)
    shutil.copytree(llamas[name], tmp_path / "served")
    before = [p.clone() for p in student.model.parameters()]
    write_weights(student, tmp_path / "served")
    served = AutoModelForCausalLM.from_pretrained(tmp_path / "served")
    torch.testing.assert_close(logits(served), logits(student.model), atol=1e-5, rtol=1e-4)
    start = AutoModelForCausalLM.from_pretrained(llamas[name])
    assert (logits(served) - logits(start)).abs().max() > 0.1
    assert all(map(torch.equal, before, student.model.parameters()))
