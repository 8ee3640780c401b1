"""The finished student: its folder, its card, and its way to a hub."""

import json
import os
import shutil
from dataclasses import replace

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalTokenNotFoundError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import tutelage
from tutelage.cli import main
from tutelage.errors import MachineError, ServerError, UsageError
from tutelage.publishing import Finished, model_card
from tutelage.signals.standing import Standing
from tutelage.training import train


@pytest.fixture
def finished(settings) -> Finished:
    start = {"kl/reverse": 0.5, "accuracy": 0.25, "accuracy/low": 0.1, "accuracy/high": 0.4}
    end = {"kl/reverse": 0.125, "accuracy": 0.75, "accuracy/low": 0.6, "accuracy/high": 0.9}
    evaluations = {0: start, 2: end, 4: {**end, "accuracy": 0.5}}
    for record in evaluations.values():
        record["accuracy/questions"] = 10
    return Finished(
        config=settings(),
        step=2,
        steps=4,
        evaluations=evaluations,
        metric="accuracy",
        improved=True,
    )


def test_the_student_folder_loads_as_it_stands(settings):
    result = train(settings(evaluation={"metric": "reverse_kl"}))
    assert result.student == result.run / "student"
    model = AutoModelForCausalLM.from_pretrained(result.student)
    tokenizer = AutoTokenizer.from_pretrained(result.student)
    assert tokenizer.decode(tokenizer("What is 1").input_ids) == "What is 1"
    best = result.run / "checkpoints" / f"step-{result.best_step}"
    for name, weight in load_file(best / "model.safetensors").items():
        assert torch.equal(model.state_dict()[name], weight)
    names = {file.name for file in result.student.iterdir()}
    assert not names & {"optimizer.safetensors", "state.json", "MANIFEST.json"}
    ModelCard.load(result.student / "README.md")


@pytest.mark.parametrize("best", [2, 0])
def test_the_best_step_is_the_student_and_else_the_last(settings, monkeypatch, best):
    hear = Standing.hear

    def rise_and_fall(standing, step, record, applied):
        hear(standing, step, {**record, "accuracy": {best: 0.9}.get(step, 0.1)}, applied)

    monkeypatch.setattr(Standing, "hear", rise_and_fall)
    result = train(settings())
    assert result.best_step == (best or None)
    step = best or result.step
    text = (result.student / "README.md").read_text()
    assert ("no evaluation during training was better" in text) == (best == 0)
    assert ("chosen as the best of 3 evaluations" in text) == (best == 2)
    assert f"| steps | {step} of {result.step} |" in text
    expected = result.run / "checkpoints" / f"step-{step}" / "model.safetensors"
    assert (result.student / "model.safetensors").read_bytes() == expected.read_bytes()


def test_weights_are_linked_and_what_a_reader_edits_is_a_copy(settings):
    result = train(settings(run={"steps": 2}))
    checkpoint = result.run / "checkpoints" / f"step-{result.best_step or result.step}"
    weights = "model.safetensors"
    assert os.path.samefile(result.student / weights, checkpoint / weights)
    (result.student / "config.json").write_text("{}")
    assert json.loads((checkpoint / "config.json").read_text())
    shutil.rmtree(result.run / "checkpoints")
    load_file(result.student / weights)


def test_a_file_system_without_links_gets_a_copy(settings, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    result = train(settings(run={"steps": 1}))
    AutoModelForCausalLM.from_pretrained(result.student)


def test_a_resumed_run_writes_its_student_anew(settings):
    first = train(settings(run={"steps": 2}))
    before = (first.student / "README.md").read_text()
    again = train(settings(run={"steps": 4}), resume=True)
    after = (again.student / "README.md").read_text()
    assert "of 2 |" in before
    assert "of 4 |" in after


def test_the_card_says_what_was_done_and_how_sure_it_is(finished):
    card = ModelCard(model_card(finished))
    assert card.data.tags == ["tutelage", "on-policy-distillation"]
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.base_model is None  # a directory, which no hub knows
    text = card.text
    assert "# untied, distilled from teacher" in text
    assert "| before training | 0.250 (0.100 to 0.400) | 10 | 0.5 |" in text
    assert "| this student, step 2 | 0.750 (0.600 to 0.900) | 10 | 0.125 |" in text
    assert "best of 3 evaluations by accuracy" in text
    assert "| prompts | `prompts.jsonl` |" in text
    assert f"tutelage {tutelage.__version__}" in text
    shown = yaml.safe_load(text.split("```yaml")[1].split("```")[0])
    assert shown["objective"]["type"] == "top_k"
    assert shown["optimizer"]["lr"] == 1e-2


def test_the_last_step_is_not_called_chosen_and_no_evaluation_is_said(finished):
    assert "best of" not in model_card(replace(finished, step=4))
    assert "None was made." in model_card(replace(finished, evaluations={}))
    bare = {2: {"kl/reverse": 0.5}}
    assert "| this student, step 2 | not verified |  | 0.5 |" in model_card(
        replace(finished, evaluations=bare)
    )


def test_a_card_names_no_folder_of_this_machine(finished, settings, tmp_path, llamas):
    target = {"type": "extrapolated", "reference": {"path": str(llamas["tied"])}}
    (tmp_path / "table.json").write_text("{}")
    weight = {"type": "reliability", "table": str(tmp_path / "table.json")}
    config = settings(
        objective={"target": target, "weight": weight},
        data={"eval_prompts": str(tmp_path / "held.jsonl")},
    )
    text = model_card(replace(finished, config=config))
    assert str(tmp_path) not in text
    assert str(llamas["tied"].parent) not in text
    for name in ("tied", "table.json", "held.jsonl"):
        assert name in text


def test_a_card_of_hub_models_links_them_by_commit(finished, settings):
    config = settings(
        student={"path": "lab/student", "revision": "1" * 40, "lora": {"rank": 2}},
        teacher={"path": "lab/teacher", "revision": "2" * 40},
    )
    card = ModelCard(model_card(replace(finished, config=config)))
    assert card.data.base_model == "lab/student"
    assert "lora" in card.data.tags
    assert f"| teacher | `lab/teacher` at `{'2' * 40}` |" in card.text
    assert "LoRA of rank 2, merged" in card.text


def test_a_name_with_yaml_in_it_leaves_the_metadata_valid(finished, settings):
    config = settings(student={"path": "models/a: [b"}, teacher={"path": "models/---"})
    card = ModelCard(model_card(replace(finished, config=config)))
    assert card.data.tags == ["tutelage", "on-policy-distillation"]


# --- push ------------------------------------------------------------------------------------


class FakeApi:
    """Stands for huggingface_hub.HfApi; keeps what it was asked."""

    asked: list = []
    fault: Exception | None = None

    def __init__(self, *, token):
        assert token is True

    def create_repo(self, repository, **wishes):
        if self.fault is not None:
            raise self.fault
        self.asked.append(("create", repository, wishes))

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        names = sorted(file.name for file in folder_path.iterdir())
        self.asked.append(("upload", repo_id, names))
        return f"https://hub/{repo_id}"


@pytest.fixture
def api(monkeypatch):
    fake = type("Api", (FakeApi,), {"asked": [], "fault": None})
    monkeypatch.setattr(huggingface_hub, "HfApi", fake)
    return fake


def test_push_uploads_the_student_alone_and_privately(settings, api, capsys):
    result = train(settings(run={"steps": 1}))
    assert api.asked == []  # nothing leaves the machine unasked
    capsys.readouterr()
    assert main(["push", str(result.run), "lab/mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"url": "https://hub/lab/mine"}
    created, uploaded = api.asked
    assert created == ("create", "lab/mine", {"private": True, "exist_ok": True})
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(uploaded[2])
    assert not {"optimizer.safetensors", "state.json", "config.yaml"} & set(uploaded[2])
    tutelage.push(result.run, "lab/mine", public=True)
    assert api.asked[2][2]["private"] is False


def test_push_takes_a_name_that_a_folder_here_has_too(settings, api, tmp_path, monkeypatch):
    result = train(settings(run={"steps": 1}))
    (tmp_path / "lab" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert tutelage.push(result.run, "lab/mine") == "https://hub/lab/mine"


def test_push_says_what_is_missing(settings, api, tmp_path):
    with pytest.raises(UsageError, match="no run directory"):
        tutelage.push(tmp_path, "lab/mine")
    result = train(settings(run={"steps": 1}))
    with pytest.raises(UsageError, match="no hub id"):
        tutelage.push(result.run, "mine")
    api.fault = LocalTokenNotFoundError("no token")
    with pytest.raises(MachineError, match="hf auth login"):
        tutelage.push(result.run, "lab/mine")
    api.fault = ConnectionError("no route to the hub")
    with pytest.raises(ServerError, match="not uploaded: no route"):
        tutelage.push(result.run, "lab/mine")
    shutil.rmtree(result.student)
    with pytest.raises(UsageError, match="no finished student"):
        tutelage.push(result.run, "lab/mine")


def test_push_without_a_login_says_so_before_it_needs_a_network(settings, tmp_path, monkeypatch):
    result = train(settings(run={"steps": 1}))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(MachineError, match="hf auth login"):
        tutelage.push(result.run, "lab/mine")
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    with pytest.raises(ServerError, match="not uploaded"):
        tutelage.push(result.run, "lab/mine")
