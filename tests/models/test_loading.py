"""What a loaded model is: attention, precision, checkpointed layers, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import draw_rollouts, read_jsonl, save_tiny_llama, tiny_gpt2, tiny_tokenizer
from tutelage.beginning import start_run
from tutelage.config import ModelConfig, StudentConfig
from tutelage.data.collate import collate
from tutelage.errors import MachineError, UsageError
from tutelage.gradient import accumulate
from tutelage.models.compatibility import require_same_tokens, share_vocabulary
from tutelage.models.loading import load_model, load_student
from tutelage.training import train


def gradients(config, rollouts=None):
    """The gradients of the first step, and its rollouts."""
    trainer = start_run(config, lambda record: None, overwrite=True)
    rollouts = rollouts or trainer.next_rollouts()
    result = accumulate(
        trainer.models,
        config.objective,
        rollouts,
        micro_batch_size=5,
        aggregation="token_mean",
        overlap_k=4,
    )
    named = trainer.models.student.model.named_parameters()
    return {n: p.grad for n, p in named if p.grad is not None}, rollouts, result


def first_step(settings, folder, **sections):
    name = "-".join(map(str, [len(list(folder.iterdir())), *sections]))
    return settings(**sections, run={"dir": str(folder / name)})


# --- gradient checkpointing ------------------------------------------------------------------


@pytest.mark.parametrize("model", ["untied", "gpt2"])  # GPT-2 has dropout in its config
@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_gradient_checkpointing_changes_no_gradient(settings, llamas, tmp_path, model, lora):
    path = str(llamas[model])
    plain, rollouts, _ = gradients(
        first_step(settings, tmp_path, student={"path": path, "lora": lora})
    )
    again, _, _ = gradients(
        first_step(
            settings,
            tmp_path,
            student={"path": path, "lora": lora, "gradient_checkpointing": True},
        ),
        rollouts,
    )
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        assert torch.equal(gradient, again[name]), name
    assert any(gradient.abs().max() > 0 for gradient in plain.values())


def test_checkpointed_layers_run_again_in_the_backward_pass_and_never_in_sampling(llamas):
    settings = StudentConfig(path=str(llamas["untied"]), gradient_checkpointing=True)
    student = load_student(settings, precision="float32", seed=0)
    runs = []
    layer = student.model.model.layers[0].self_attn
    layer.register_forward_hook(lambda *_: runs.append(1))
    ids = torch.arange(8).unsqueeze(0)
    with torch.no_grad():
        student.model(ids)
    assert len(runs) == 1
    output = student.model(ids).logits.sum()
    assert len(runs) == 2
    output.backward()
    assert len(runs) == 3
    assert not student.model.training


def test_a_model_without_such_layers_refuses_checkpointing(settings, llamas, monkeypatch):
    monkeypatch.setattr("tutelage.models.loading.GradientCheckpointingLayer", torch.nn.LSTM)
    with pytest.raises(UsageError, match=r"a LlamaForCausalLM has no layers .*micro_batch_size"):
        train(settings(student={"gradient_checkpointing": True}))


# --- precision -------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["untied", "gpt2"])
def test_bfloat16_layers_leave_weights_statistics_and_gradients_float32(
    settings, llamas, tmp_path, model
):
    student = {"path": str(llamas[model])}
    exact, rollouts, _ = gradients(first_step(settings, tmp_path, student=student))
    config = first_step(settings, tmp_path, student=student, optimizer={"precision": "bfloat16"})
    rounded, _, result = gradients(config, rollouts)
    assert {g.dtype for g in rounded.values()} == {torch.float32}
    assert {t.dtype for t in result.table.values() if t.is_floating_point()} <= {
        torch.float32,
        torch.float64,
    }
    one, two = (torch.cat([g.flatten() for g in x.values()]) for x in (exact, rounded))
    assert not torch.equal(one, two)  # so bfloat16 was at work
    assert torch.cosine_similarity(one, two, dim=0) > 0.99


@pytest.mark.parametrize("model", ["untied", "tied", "gpt2"])
def test_sampling_and_scoring_agree_in_bfloat16(llamas, model):
    """The logits of both come from one float32 head; only the layers round."""
    settings = StudentConfig(path=str(llamas[model]))
    found = {}
    for precision in ("float32", "bfloat16"):
        student = load_student(settings, precision=precision, seed=0)
        assert {p.dtype for p in student.model.parameters()} == {torch.float32}
        rollouts = draw_rollouts(student)
        batch = collate(rollouts)
        scores = student.score(batch)
        assert scores.dtype == torch.float32
        scored = scores.gather(-1, batch.targets.unsqueeze(-1)).squeeze(-1)
        sampled = torch.tensor([x for r in rollouts for x in r.logprobs])
        found[precision] = (scored - sampled).abs().max().item()
    assert found["float32"] < 2e-5
    assert 2e-5 < found["bfloat16"] < 0.2


def test_a_run_in_bfloat16_learns_saves_float32_and_resumes(settings):
    half = {"precision": "bfloat16"}
    result = train(settings(optimizer=half, run={"steps": 20, "save_every": 10}))
    assert result.last["kl/reverse"] < 0.9 * result.first["kl/reverse"]
    weights = load_file(result.checkpoint / "model.safetensors")
    moments = load_file(result.checkpoint / "optimizer.safetensors")
    assert {t.dtype for t in [*weights.values(), *moments.values()]} == {torch.float32}
    assert (
        train(settings(optimizer=half, run={"steps": 21, "save_every": 10}), resume=True).step == 21
    )


def test_the_initial_reference_is_exactly_the_student_in_bfloat16_too(settings):
    brake = {"brake": {"coefficient": 1.0}, "type": "full", "target": "teacher"}
    config = settings(objective=brake, optimizer={"precision": "bfloat16"})
    trainer = start_run(config, lambda record: None)
    batch = collate(trainer.next_rollouts())
    student, reference = trainer.models.student, trainer.models.references["brake"]
    assert torch.equal(student.score(batch), reference.score(batch))


def test_weights_of_bfloat16_compute_under_autocast_too(settings, llamas):
    """A frozen base under additions, and a reference."""
    half = {"path": str(llamas["untied"]), "dtype": "bfloat16"}
    config = settings(
        student={"dtype": "bfloat16", "lora": {"rank": 2}},
        optimizer={"precision": "bfloat16"},
        objective={"brake": {"coefficient": 0.1, "reference": half}},
        run={"steps": 8},
    )
    result = train(config)
    assert result.last["kl/reverse"] < result.first["kl/reverse"]


# --- attention -------------------------------------------------------------------------------


def test_eager_and_sdpa_attention_are_one_function(llamas, settings):
    ids = torch.arange(40).reshape(4, 10)
    found = {}
    for attention in ("eager", "sdpa"):
        model = load_model(ModelConfig(path=str(llamas["untied"]), attention=attention), "student")
        assert model.model.config._attn_implementation == attention
        with torch.no_grad():
            found[attention] = model.model(ids).logits
    torch.testing.assert_close(found["eager"], found["sdpa"], atol=1e-5, rtol=1e-4)
    assert train(settings(student={"attention": "eager"}, run={"steps": 1})).step == 1


def test_flash_attention_needs_half_precision_and_its_package(settings, llamas):
    flash = {"attention": "flash_attention_2"}
    with pytest.raises(UsageError, match=r"student.attention .* set optimizer.precision: bfloat16"):
        settings(student=flash)
    with pytest.raises(UsageError, match=r"teacher.attention .* set teacher.dtype: bfloat16"):
        settings(teacher=flash)
    settings(student=flash, optimizer={"precision": "bfloat16"})
    with pytest.raises(MachineError, match=r"teacher.attention .* package flash-attn") as caught:
        train(settings(teacher={**flash, "dtype": "bfloat16"}))
    assert caught.value.exit_code == 5


# --- vocabularies ----------------------------------------------------------------------------


@pytest.mark.parametrize("larger", ["student", "teacher"])
def test_heads_padded_to_other_sizes_train_on_the_rows_both_have(settings, tmp_path, larger):
    """151,936 and 152,064 rows, as one family of models has them."""
    rows = {"student": 151_936, "teacher": 151_936, larger: 152_064}
    paths = {role: tmp_path / role for role in rows}
    save_tiny_llama(paths["student"], rows=rows["student"], tied=True)
    tiny_gpt2(rows["teacher"], 8, 1).save_pretrained(paths["teacher"])
    tiny_tokenizer().save_pretrained(paths["teacher"])
    result = train(
        settings(
            **{role: {"path": str(path)} for role, path in paths.items()},
            rollout={"prompts_per_step": 2, "group_size": 1, "max_new_tokens": 3},
            data={"held_out": 2},
            run={"steps": 1, "save_every": 0},
        )
    )
    (step,) = (r for r in read_jsonl(result.run / "metrics.jsonl") if r["kind"] == "train")
    assert step["applied"]
    assert step["kl/reverse"] > 0
    saved = load_file(result.student / "model.safetensors")
    assert saved["model.embed_tokens.weight"].shape[0] == rows["student"]


@pytest.mark.parametrize("short", ["student", "teacher"])
def test_ids_beyond_a_heads_rows_are_refused_with_the_side(settings, llamas, tmp_path, short):
    path = tmp_path / "short"
    size = len(tiny_tokenizer())
    save_tiny_llama(path, rows=size - 5)
    message = rf"ids up to {size - 1}, but the {short}'s head has only {size - 5} rows"
    with pytest.raises(UsageError, match=message):
        train(settings(**{short: {"path": str(path)}}))


def test_a_teacher_that_knows_more_tokens_is_refused_and_counted(settings, llamas, tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    shutil.copytree(llamas["teacher"], tmp_path / "more")
    tokenizer.save_pretrained(tmp_path / "more")
    with pytest.raises(UsageError, match=r"disagree on 2 of .* nothing vs '<think>'"):
        train(settings(teacher={"path": str(tmp_path / "more")}))


def test_two_swapped_ids_of_an_added_token_are_found():
    one, two = tiny_tokenizer(), tiny_tokenizer()
    one.add_tokens(["<a>", "<b>"])
    two.add_tokens(["<b>", "<a>"])
    assert len(one) == len(two)
    with pytest.raises(UsageError, match=r"disagree on 2 of .* '<a>' vs '<b>'"):
        require_same_tokens(one, two)


def test_share_vocabulary_takes_the_smallest_head_of_all(llamas):
    models = {name: load_model(ModelConfig(path=str(path)), name) for name, path in llamas.items()}
    share_vocabulary(models)
    assert {m.vocabulary for m in models.values()} == {len(tiny_tokenizer())}


# --- damaged and foreign folders -------------------------------------------------------------


def test_a_config_that_does_not_fit_the_weights_is_told_by_shape(settings, llamas, tmp_path):
    folder = tmp_path / "wrong"
    shutil.copytree(llamas["untied"], folder)
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] = 32
    (folder / "config.json").write_text(json.dumps(config))
    message = (
        r"teacher model .*wrong: 6 weights have other shapes than config.json makes them "
        r"\(first: model.layers.0.mlp.down_proj.weight is stored as \[16, 24\], the config makes "
        r"it \[16, 32\]\); .* copy both from one model"
    )
    with pytest.raises(UsageError, match=message):
        train(settings(teacher={"path": str(folder)}))


@pytest.fixture
def adapter(settings, tmp_path):
    """A copy of a trained adapter in which one file can be changed."""
    result = train(settings(student={"lora": {"rank": 2}}, run={"steps": 1}))
    folder = tmp_path / "adapter"
    shutil.copytree(result.checkpoint, folder)

    def change(**entries):
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))
        return ModelConfig(path=str(folder))

    return change


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"peft_type": "IA3"}, "an adapter of type IA3; only LORA"),
        ({"base_model_name_or_path": None}, "names no base_model_name_or_path"),
        ({"base_model_name_or_path": "/gone"}, r"base of the adapter .*no directory /gone"),
    ],
)
def test_adapters_that_cannot_be_merged_say_why(adapter, entries, message):
    with pytest.raises(UsageError, match=message):
        load_model(adapter(**entries), "teacher")


def test_an_adapter_of_another_model_is_refused(adapter, llamas):
    with pytest.raises(UsageError, match="cannot be merged into its base model"):
        load_model(adapter(base_model_name_or_path=str(llamas["teacher"])), "teacher")


def test_a_pickled_adapter_is_never_opened(adapter):
    settings = adapter()
    file = Path(settings.path) / "adapter_model.safetensors"
    file.rename(file.with_name("adapter_model.bin"))
    with pytest.raises(UsageError, match=r"no adapter_model\.safetensors"):
        load_model(settings, "teacher")


def test_an_adapter_may_be_the_teacher(settings, adapter, tmp_path):
    teacher = adapter()
    result = train(
        settings(teacher={"path": teacher.path}, run={"dir": str(tmp_path / "next"), "steps": 1})
    )
    assert 0 < result.first["kl/reverse"] < 1  # one step from the student


def test_restoring_an_adapter_of_other_layers_is_refused(adapter, llamas):
    settings = StudentConfig(
        path=str(llamas["untied"]), lora={"rank": 2, "target_modules": ["q_proj"]}
    )
    folder = Path(adapter().path)
    with pytest.raises(UsageError, match="is of other layers"):
        load_student(settings, precision="float32", seed=0, checkpoint=str(folder))
    tensors = load_file(folder / "adapter_model.safetensors")
    kept = {k: v for k, v in tensors.items() if "q_proj" in k and "lora_A" in k}
    save_file(kept, folder / "adapter_model.safetensors")
    with pytest.raises(UsageError, match="is of other layers"):
        load_student(settings, precision="float32", seed=0, checkpoint=str(folder))
