"""What two models say of themselves, and where they disagree."""

import json
import shutil

import pytest

from tutelage.config import ModelConfig
from tutelage.models.facts import disagreements, facts_of


def facts(path, role, **settings):
    return facts_of(ModelConfig(path=str(path), **settings), role)


@pytest.fixture
def copy(llamas, tmp_path):
    """A copy of the student whose files a test may change."""
    return shutil.copytree(llamas["untied"], tmp_path / "copy")


def edit(path, **changes):
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}))


def names(student, teacher):
    return [signal.name for signal in disagreements(student, teacher)]


def test_a_model_agrees_with_itself(llamas):
    student = llamas["untied"]
    assert names(facts(student, "student"), facts(student, "teacher")) == []


def test_other_stop_ids_are_named_on_both_sides(llamas, copy):
    edit(copy / "generation_config.json", eos_token_id=[2, 7])
    found = disagreements(facts(llamas["untied"], "student"), facts(copy, "teacher"))
    assert [s.name for s in found] == ["stop_ids_differ"]
    assert "7" in found[0].evidence.split("teacher")[1]


def test_equal_sizes_with_two_ids_swapped_cannot_be_combined(llamas, copy):
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, other = sorted(vocabulary, key=vocabulary.get)[-2:]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = disagreements(facts(llamas["untied"], "student"), facts(copy, "teacher"))
    assert [(s.name, s.severity) for s in found] == [("tokens_differ", "stop")]
    assert "disagree on 2 of" in found[0].evidence


def test_a_teacher_that_is_not_asked_for_its_own_template_is_a_warning(llamas, copy):
    (copy / "chat_template.jinja").write_text("{{ messages[0].content }} ->")
    student = facts(llamas["untied"], "student")
    assert names(student, facts(copy, "teacher")) == ["templates_differ"]
    assert names(student, facts(copy, "teacher", chat_template="own")) == []


def test_precision_and_padding_are_told_apart_from_what_cannot_work(llamas, copy):
    rows = json.loads((copy / "config.json").read_text())["vocab_size"]
    edit(copy / "config.json", vocab_size=rows + 16)
    found = disagreements(
        facts(llamas["untied"], "student"), facts(copy, "teacher", dtype="bfloat16")
    )
    assert [(s.name, s.severity) for s in found] == [
        ("vocabularies_differ", "warning"),
        ("precisions_differ", "warning"),
    ]
    edit(copy / "config.json", vocab_size=rows - 40)
    assert "head_too_short" in names(facts(llamas["untied"], "student"), facts(copy, "teacher"))
