"""`tutelage init`: a first config that the other verbs take as it is."""

import json
import shutil

import pytest

import tutelage
from helpers import save_tiny_llama, sums, tiny_tokenizer, write_jsonl
from tutelage.cli import main
from tutelage.config import load_config
from tutelage.errors import DataError, UsageError
from tutelage.lab.embedded import model_path


@pytest.fixture
def place(tmp_path, monkeypatch, gpt2_pair):
    """A folder with two models and prompts, where a user has begun."""
    monkeypatch.chdir(tmp_path)
    for name, source in zip(("student", "teacher"), gpt2_pair, strict=True):
        (tmp_path / name).symlink_to(source)
    write_jsonl(tmp_path / "prompts.jsonl", sums(40))
    return tmp_path


def write_with(place, rows, **sides):
    write_jsonl(place / "rows.jsonl", rows)
    sides = {"student": "student", "teacher": "teacher", **sides}
    begun = tutelage.init(**sides, data="rows.jsonl", output="other.yaml", overwrite=True)
    return load_config("other.yaml"), begun


def test_what_it_writes_is_planned_checked_and_trained_as_it_is(place, capsys):
    assert main(["init", "student", "teacher", "--data", "prompts.jsonl", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["config"] == "run.yaml"
    assert told["next"] == "tutelage check -c run.yaml"
    assert main(["plan", "-c", "run.yaml"]) == 0
    few = ["--check.budget", "600", "--check.questions", "4"]
    assert main(["check", "-c", "run.yaml", *few]) in (0, 3)
    assert main(["train", "-c", "run.yaml", "--run.steps", "1"]) == 0
    assert (place / "runs" / "run" / "student" / "config.json").is_file()


def test_numbers_that_begin_with_0_are_said_to_be_judged_as_numbers(place):
    for answer, said in (("07", True), ("0", False), ("70", False)):
        write_with(place, [{**row, "answer": answer} for row in sums(10)])
        assert ("07 and 7 are one" in (place / "other.yaml").read_text()) == said


def test_sizes_come_from_the_models_and_the_prompts(place):
    config, begun = write_with(place, sums(40))
    assert begun.notes == ()
    assert config.data.verifier.type == "numeric"
    assert config.data.held_out == 8
    assert config.rollout.prompts_per_step == 32  # all that are left
    assert config.data.max_prompt_tokens + config.rollout.max_new_tokens == 64  # the context
    assert config.objective == load_config("other.yaml", ["--preset", "recommended"]).objective
    text = (place / "other.yaml").read_text()
    assert "40 rows" in text
    assert "64 tokens of context, no chat template" in text
    assert "tutelage check -c other.yaml" in text


def test_a_second_config_names_a_run_directory_that_is_free(place):
    (place / "runs" / "other").mkdir(parents=True)
    assert write_with(place, sums(40))[0].run.dir == "runs/other-2"


def test_nothing_is_overwritten_unasked(place, capsys):
    (place / "run.yaml").write_text("mine")
    words = ["init", "student", "teacher", "--data", "prompts.jsonl"]
    assert main(words) == 2
    assert "run.yaml exists; --overwrite replaces it" in capsys.readouterr().err
    assert (place / "run.yaml").read_text() == "mine"
    assert main([*words, "--overwrite"]) == 0
    assert load_config("run.yaml").student.path == "student"


def test_without_prompts_it_says_where_they_go(place, capsys):
    (place / "prompts.jsonl").unlink()
    assert main(["init", "student", "teacher", "-o", "deep/run.yaml"]) == 0
    assert "put your prompts there" in capsys.readouterr().out
    assert load_config("deep/run.yaml").data.prompts == "prompts.jsonl"
    assert main(["plan", "-c", "deep/run.yaml"]) == 0
    assert main(["check", "-c", "deep/run.yaml"]) == 4


@pytest.mark.parametrize(
    ("answers", "verifier", "note"),
    [
        (["\\frac{1}{2}", "x^2"], "math", None),
        (["yes", "no"], None, "answers such as 'yes'"),
        (["1", None], None, "5 of 10 rows have no answer"),
        ([None, None], None, "agreement with the teacher alone"),
    ],
)
def test_the_verifier_suits_the_answers(place, answers, verifier, note):
    rows = [{"question": f"What is {i}?", "answer": answers[i % 2]} for i in range(10)]
    config, begun = write_with(place, rows)
    assert getattr(config.data.verifier, "type", None) == verifier
    assert note is None or note in begun.notes[0]


def test_generated_problems_are_judged_by_their_generator(place):
    for name in ("student", "teacher"):  # their weights are not looked into
        folder = shutil.copytree(place / name, place / f"long-{name}")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "n_positions": 4096}))
    source = "reasoning_gym:chain_sum?size=20"
    begun = tutelage.init("long-student", "long-teacher", data=source, output="gym.yaml")
    assert begun.notes == ()
    assert load_config("gym.yaml").is_judged
    assert load_config("gym.yaml").rollout.max_new_tokens == 512


def test_a_base_model_reads_chats_by_its_teachers_template(place):
    teacher = place / "instructed"
    shutil.copytree(place / "teacher", teacher)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    tokenizer.save_pretrained(teacher)
    rows = [{"prompt": [{"role": "user", "content": f"What is {i}?"}]} for i in range(10)]
    config, begun = write_with(place, rows, teacher="instructed")
    assert config.student.chat_template == "instructed"
    assert any("reads and learns the teacher's" in note for note in begun.notes)
    assert not any("differ" in note for note in begun.notes)
    assert main(["train", "-c", "other.yaml", "--run.steps", "1"]) == 0
    assert "chat templates" not in (place / "runs/other/events.jsonl").read_text()
    judged = [{**row, "answer": "1"} for row in rows]
    write_jsonl(place / "judged.jsonl", judged)  # of this many tokens its context has room
    words = ["--prompts", "judged.jsonl", "--verifier", "exact", "--max-new-tokens", "4"]
    assert main(["eval", "runs/other/student", *words]) == 0
    assert main(["eval", "student", *words]) == 2  # as it was


def test_a_tiny_vocabulary_gets_a_support_that_is_smaller_than_it(tmp_path):
    path = tmp_path / "run.yaml"
    tutelage.init(model_path("student"), model_path("compatible"), output=path)
    assert load_config(path).objective.k == 4  # of 32 tokens


@pytest.mark.parametrize(
    ("width", "lr"), [(16, 1e-3), (64, 1e-3), (128, 4e-4), (256, 1e-4), (576, 4e-5), (577, 1e-5)]
)
def test_the_learning_rate_is_of_the_students_width_up_to_those_measured(place, width, lr):
    folder = shutil.copytree(place / "student", place / "student-of-it")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_embd": width}))
    written = write_with(place, sums(10), student=folder.name)[0].optimizer
    assert (written.lr, written.warmup_steps) == (lr, 10)  # the preset's warm-up stays
    assert (f"width {width}" in (place / "other.yaml").read_text()) == (lr > 1e-5)


def test_pairs_that_cannot_be_combined_are_refused_before_anything_is_written(place, tmp_path):
    other = save_tiny_llama(place / "other")
    tiny_tokenizer(extra=["<more>"]).save_pretrained(other)
    for student, teacher, message in (
        ("student", "student", "nothing to learn"),
        ("student", "other", "disagree on"),
        ("student", "nowhere", "there is no directory nowhere"),
        ("student", "/dev/null", "there is no directory"),
    ):
        with pytest.raises(UsageError, match=message):
            tutelage.init(student, teacher)
    with pytest.raises(DataError, match="no prompts file"):
        tutelage.init("student", "teacher", data="nothing.jsonl")
    write_jsonl(place / "long.jsonl", [{"prompt": "What is 1 + 2? " * 40}] * 3)
    with pytest.raises(UsageError, match="half of the context"):
        tutelage.init("student", "teacher", data="long.jsonl")
    with pytest.raises(UsageError, match="is a directory"):
        tutelage.init("student", "teacher", output=tmp_path)
    assert not (place / "run.yaml").exists()


def test_names_that_yaml_would_read_otherwise_stay_what_they_are(place):
    (place / "yes: #1").symlink_to(place / "student")
    config, _ = write_with(place, sums(10), student="yes: #1")
    assert config.student.path == "yes: #1"
