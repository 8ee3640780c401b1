"""preview shows exactly what a run would read, without loading weights."""

import hashlib
import json
import shutil

import pytest
import yaml

from helpers import sums, write_jsonl
from tutelage.cli import main
from tutelage.config import load_config
from tutelage.lab.embedded import model_path
from tutelage.previewing import preview
from tutelage.session import prepare

CHAT = "{% for m in messages %}<{{ m.role }}>\n{{ m.content }}{% endfor %}<assistant>{{ mood }}"


@pytest.fixture
def write(gpt2_pair, tmp_path):
    """A run.yaml of the tiny pair, with changed sections."""
    prompts = write_jsonl(tmp_path / "prompts.jsonl", sums(30))

    def make(**sections):
        tree = {
            "student": {"path": str(gpt2_pair[0])},
            "teacher": {"path": str(gpt2_pair[1])},
            "data": {"prompts": str(prompts), "held_out": 0, "verifier": "numeric"},
            "rollout": {"prompts_per_step": 4, "max_new_tokens": 6},
            "run": {"dir": str(tmp_path / "run"), "steps": 2},
        }
        for name, section in sections.items():
            tree[name] = {**tree[name], **section}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
        return str(tmp_path / "run.yaml")

    return make


def test_preview_shows_the_ids_that_a_run_reads(write, tmp_path):
    (tmp_path / "chat.jinja").write_text(CHAT)
    own = {"chat_template": str(tmp_path / "chat.jinja"), "template": {"mood": "calm"}}
    for teacher in ({}, {"user_prompt": "{answer}! {question}"}, own):
        config = load_config(write(teacher=teacher))
        shown, session = preview(config, 5), prepare(config)
        assert [row.id for row in shown.rows] == [f"sum-{i}" for i in range(5)]
        for row, prompt in zip(shown.rows, session.prompts, strict=False):
            assert row.student.ids == prompt.ids
            assert (row.teacher.ids if row.teacher else None) == prompt.teacher_ids
            for reading in filter(None, (row.student, row.teacher)):
                assert "".join(reading.tokens) == reading.text
        for side, model in (
            (shown.student, session.models.student),
            (shown.teacher, session.models.teacher),
        ):
            assert set(side.stop_ids) == model.stop_ids
            assert list(side.end_of_sequence) == [model.tokenizer.eos_token_id]
    assert shown.teacher.chat_template_sha256 == hashlib.sha256(CHAT.encode()).hexdigest()
    assert shown.student.chat_template_sha256 is None


@pytest.mark.parametrize("name", ["student", "compatible"])
def test_stop_ids_without_weights_are_those_with_them(name):
    from tutelage.config import ModelConfig
    from tutelage.models.loading import load_model, stop_ids_of_folder

    settings = ModelConfig(path=str(model_path(name)))
    model = load_model(settings, "model")
    assert stop_ids_of_folder(settings, "model", model.tokenizer) == model.stop_ids


def test_preview_loads_no_weights(write, gpt2_pair, tmp_path, capsys):
    for name, path in zip(("student", "teacher"), gpt2_pair, strict=True):
        shutil.copytree(path, tmp_path / name)
        (tmp_path / name / "model.safetensors").write_bytes(b"none")
    paths = {name: {"path": str(tmp_path / name)} for name in ("student", "teacher")}
    assert main(["preview", "-c", write(**paths)]) == 0


def test_preview_is_json_on_stdout_or_text(write, capsys):
    path = write(data={"max_prompt_tokens": 1}, teacher={"user_prompt": "\x1b[31m{question}"})
    assert main(["preview", "-c", path, "-n", "2", "--json"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert err == ""
    assert told["layout"]["name"] == "question/answer"
    assert told["layout"]["prompt"] == {"question": 30}
    assert [row["too_long"] for row in told["rows"]] == [True, True]
    assert told["rows"][1]["teacher"]["text"] == "\x1b[31mWhat is 1 + 2?"
    assert main(["preview", "-c", path, "-n", "1"]) == 0
    text = capsys.readouterr().out
    assert "question/answer layout, 30 rows; prompt: question; answer: answer; id: id" in text
    assert "longer than data.max_prompt_tokens: dropped" in text
    assert "\\x1b[31mWhat is 0 + 0?" in text
    assert "\x1b" not in text
    assert " ".join(map(str, told["rows"][0]["student"]["ids"])) in text


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_template_that_refuses_a_row_names_side_and_row(write, tmp_path, capsys, role):
    (tmp_path / "chat.jinja").write_text(
        "{% if '1 + 2' in messages[0].content %}{{ raise_exception('no sums') }}{% endif %}"
        "{{ messages[0].content }}"
    )
    path = write(**{role: {"chat_template": str(tmp_path / "chat.jinja")}})
    assert main(["preview", "-c", path]) == 4
    err = capsys.readouterr().err
    assert f"the {role}'s chat template cannot render prompt 'sum-1': no sums" in err
    assert "Traceback" not in err


def test_a_wording_may_begin_with_the_question(write, capsys):
    words = ["--teacher.user_prompt", "{question} Be brief: yes?", "--json"]
    assert main(["preview", "-c", write(), *words]) == 0
    (row, *_) = json.loads(capsys.readouterr().out)["rows"]
    assert row["teacher"]["text"].endswith("? Be brief: yes?")


def test_what_preview_refuses(write, capsys):
    assert main(["preview", "-c", write(), "-n", "0"]) == 2
    assert "at least one row" in capsys.readouterr().err
    path = write(teacher={"path": str(model_path("compatible"))})
    assert main(["preview", "-c", path]) == 2
    assert "disagree on" in capsys.readouterr().err


def test_a_prompt_that_no_side_can_read_with_its_answer_is_told(write, capsys):
    path = write(rollout={"max_new_tokens": 60})
    assert main(["preview", "-c", path, "-n", "1"]) == 0
    assert "longer than a side can read: refused" in capsys.readouterr().out
    assert main(["train", "-c", path]) == 2
    err = capsys.readouterr().err
    assert "lower rollout.max_new_tokens to " in err
    assert "or set data.max_prompt_tokens to 4" in err
