"""The next command: one that works when it is pasted."""

import shlex

import pytest

from helpers import write_jsonl
from tutelage.config import load_config, parse_config
from tutelage.diagnose.checking import Check
from tutelage.diagnose.commands import next_command
from tutelage.diagnose.looks import Look
from tutelage.diagnose.verdict import Reason, Verdict

TREE = {
    "student": {"path": "models/student"},
    "teacher": {"path": "models/teacher"},
    "data": {"prompts": "prompts.jsonl", "verifier": {"type": "pattern", "pattern": r"#(\d)$"}},
    "align": {"teachers": {"good": {"path": "models/good", "dtype": "bfloat16"}}},
    "check": {
        "questions": 8,
        "prompt_sets": {"boxed": {"user_prompt": "{question} Put it in a box: 'so'."}},
    },
}


def look(word, why="why", teacher="teacher", prompt_set="run"):
    verdict = Verdict(word=word, reasons=(Reason(name=why, says="note", text="text"),))
    return Look(teacher=teacher, prompt_set=prompt_set, verdict=verdict)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """From looks to the words of the next command, and the settings that they give."""
    monkeypatch.chdir(tmp_path)
    import yaml

    (tmp_path / "run.yaml").write_text(yaml.safe_dump(TREE))
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "1 + 1", "answer": "2"}])

    def make(*looks, words=(), **known):
        arguments = ["-c", "run.yaml", *words]
        found = Check(
            config=load_config("run.yaml", words),
            looks=looks,
            sides={},
            student={},
            differences={},
            between_sets={},
            notes=(),
            seconds=1.0,
            **{"questions": {"run": 8}, "has_answers": True, "room": 999} | known,
        )
        program, verb, *rest = shlex.split(next_command(found, arguments))
        assert program == "tutelage"
        if verb in ("eval", "rescue"):
            return verb, rest, None
        assert rest[:2] == ["-c", "run.yaml"]
        return verb, rest, load_config("run.yaml", rest[2:])

    return make


def test_go_trains_in_a_folder_that_is_free(command, tmp_path):
    verb, _, config = command(look("go"))
    assert (verb, config.run.dir) == ("train", "runs/latest")
    (tmp_path / "runs/latest").mkdir(parents=True)
    assert command(look("go"))[2].run.dir == "runs/latest-2"


def test_what_only_a_check_reads_is_not_handed_to_train(command):
    words = ["--check.questions", "4", "--optimizer.lr=1e-4"]
    _, rest, config = command(look("go"), words=words)
    assert not any("check" in word for word in rest)
    assert config.optimizer.lr == 1e-4


def test_another_teacher_that_helps_takes_the_place_with_all_its_settings(command):
    verb, rest, config = command(
        look("different-teacher"),
        look("go", teacher="good"),
        words=["--teacher.path", "models/other", "--teacher.dtype", "float16"],
    )
    assert verb == "train"
    assert (config.teacher.path, config.teacher.dtype) == ("models/good", "bfloat16")
    assert "models/other" not in rest


def test_a_wording_that_helps_is_trained_on(command):
    _, _, config = command(look("unknown"), look("go", prompt_set="boxed"))
    assert config.student.user_prompt == "{question} Put it in a box: 'so'."


def test_a_self_teacher_that_helps_is_the_student_with_the_answer(command):
    _, _, config = command(look("cold-start"), look("go", teacher="self:answer"))
    assert config.teacher_model.path == "models/student"
    assert "{answer}" in config.teacher_model.user_prompt


def test_a_self_teacher_that_is_shown_rollouts_needs_a_group_of_them(command):
    _, _, config = command(look("cold-start"), look("go", teacher="self:demonstration"))
    assert config.teacher.context == "demonstration"
    assert config.rollout.group_size == 4


def test_a_cold_start_goes_on_with_distillation_in_folders_that_are_free(command, tmp_path):
    verb, rest, _ = command(look("cold-start"))
    assert (verb, rest[:3]) == ("rescue", ["cold-start", "-c", "run.yaml"])
    assert rest[rest.index("--output") + 1] == "runs/latest-cold-start"
    assert rest[-2:] == ["--then", "train"]
    (tmp_path / "runs/latest").mkdir(parents=True)
    assert command(look("cold-start"))[1][-2:] == ["--run.dir", "runs/latest-2"]


def test_a_self_teacher_that_reads_summaries_cannot_be_trained_on(command):
    verb, _, config = command(look("unknown", "undecided"), look("go", teacher="self:summary"))
    assert (verb, config.check.questions) == ("check", 32)


@pytest.mark.parametrize(
    ("word", "why", "known", "verb", "setting"),
    [
        ("unknown", "undecided", {}, "check", ("check", "questions", 32)),
        # Every held-out question was asked already.
        ("unknown", "undecided", {"questions": {"run": 5}}, "check", ("check", "samples", 16)),
        ("unknown", "unverified", {}, "check", ("data", "verifier.type", "numeric")),
        ("unknown", "unverified", {"has_answers": False}, "preview", None),
        ("change-prompts", "truncated", {}, "check", ("rollout", "max_new_tokens", 999)),
        ("change-prompts", "truncated", {"room": 512}, "preview", None),
        (
            "change-prompts",
            "context_too_short",
            {"room": 40},
            "check",
            ("rollout", "max_new_tokens", 40),
        ),
        ("change-prompts", "stop_ids_differ", {}, "preview", None),
        (
            "different-teacher",
            "gap",
            {},
            "check",
            ("align", "contexts", ["answer", "demonstration"]),
        ),
        (
            "different-teacher",
            "gap",
            {"has_answers": False},
            "check",
            ("align", "contexts", ["demonstration"]),
        ),
    ],
)
def test_each_reason_has_a_command_that_says_more(command, word, why, known, verb, setting):
    found, _, config = command(look(word, why), **known)
    assert found == verb
    if setting is not None:
        section, key, value = setting
        here = getattr(config, section)
        for part in key.split("."):
            here = getattr(here, part)
        assert here == value


@pytest.mark.parametrize("why", ["solved", "nobody_right"])
def test_answers_are_looked_at_with_the_runs_own_verifier(command, why):
    verb, rest, _ = command(look("change-prompts", why))
    assert verb == "eval"
    assert rest[0] == "models/student"
    assert rest[rest.index("--verifier") + 1] == r"pattern:#(\d)$"


def test_sampling_that_cannot_be_aligned_is_opened(command):
    _, _, config = command(look("unknown", "not_measured"), words=["--rollout.top_p", "0.9"])
    assert config.rollout.top_p == 1


def test_settings_without_a_file_are_named_by_their_flags():
    config = parse_config(TREE)
    found = Check(
        config=config,
        looks=(look("go"),),
        sides={},
        student={},
        differences={},
        between_sets={},
        notes=(),
        questions={"run": 8},
        has_answers=True,
        room=None,
        seconds=1.0,
    )
    assert next_command(found).startswith("tutelage train -c CONFIG.yaml")
