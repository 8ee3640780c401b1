"""`check` on the embedded models, whose relations are known."""

import json
import shutil
from dataclasses import replace

import pytest

import tutelage
from helpers import sums, write_jsonl
from tutelage.cli import main
from tutelage.config import parse_config
from tutelage.diagnose.checking import check
from tutelage.diagnose.summary import summary
from tutelage.errors import DataError, UsageError
from tutelage.lab.embedded import EMBEDDED_SPEC, VERIFIER, model_path

SMALL = {"questions": 32, "samples": 4, "continued": 8, "continuations": 2, "budget": 30_000}


def rows(count, seed=5):
    return [
        {"id": p.id, "prompt": [{"role": "user", "content": p.question}], "answer": p.answer}
        for p in EMBEDDED_SPEC.task.eval_prompts(count, seed=seed)
    ]


@pytest.fixture
def settings(tmp_path):
    prompts = write_jsonl(tmp_path / "prompts.jsonl", rows(80))

    def make(teacher="compatible", **sections):
        tree = {
            "student": {"path": str(model_path("student"))},
            "teacher": {"path": str(model_path(teacher))},
            "data": {"prompts": str(prompts), "verifier": VERIFIER.model_dump()},
            "rollout": {"max_new_tokens": 28},
            "check": SMALL,
        }
        for name, section in sections.items():
            tree[name] = {**tree.get(name, {}), **section}
        return parse_config(tree)

    return make


def by_name(found):
    return {(look.teacher, look.prompt_set): look for look in found.looks}


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """One check of three teachers, a self-teacher and a baseline."""
    folder = tmp_path_factory.mktemp("check")
    prompts = write_jsonl(folder / "prompts.jsonl", rows(80))
    config = parse_config(
        {
            "student": {"path": str(model_path("student"))},
            "teacher": {"path": str(model_path("compatible"))},
            "data": {"prompts": str(prompts), "verifier": VERIFIER.model_dump()},
            "rollout": {"max_new_tokens": 28},
            "align": {
                "teachers": {
                    "incompatible": {"path": str(model_path("incompatible"))},
                    "same_data": {"path": str(model_path("same_data"))},
                },
            },
            "check": {
                **SMALL,
                "questions": 48,
                "budget": 60_000,
                "baseline": {"path": str(model_path("student"))},
            },
        }
    )
    return check(config, output=folder / "check.json"), folder / "check.json"


def test_four_teachers_of_known_use_are_told_apart(several):
    looks = {name: look.verdict.word for (name, _), look in by_name(several[0]).items()}
    assert looks == {
        "teacher": "go",
        "incompatible": "cold-start",
        "same_data": "different-teacher",
        "baseline": "different-teacher",
    }


def test_the_ranking_begins_with_the_one_that_helps_and_differences_are_paired(several):
    found, _ = several
    assert found.ranking[0].teacher == "teacher"
    versus = found.differences["run"]["teacher - incompatible"]["advantage"]
    assert versus["interval"][0] > 0
    versus = found.differences["run"]["teacher - same_data"]["accuracy"]
    assert versus["paired"]
    assert versus["interval"][0] > 0.3


def test_a_student_as_its_own_teacher_is_sound_and_has_nothing_to_give(several):
    look = by_name(several[0])["baseline", "run"]
    assert look.agreement["kl/reverse"] == pytest.approx(0, abs=1e-9)
    assert look.capability["accuracy"]["gap"] == pytest.approx(0, abs=1e-9)
    assert look.soundness == pytest.approx({"teacher_twice": 0, "student_itself": 0}, abs=1e-5)


def test_the_teacher_differs_from_its_baseline_in_the_students_eyes(several):
    look = by_name(several[0])["teacher", "run"]
    # The baseline is the student, so both distances are one, seen from either end.
    assert look.baseline["kl_teacher_to_baseline"]["interval"][0] > 0.05
    assert look.baseline["kl_student_to_baseline"]["value"] == pytest.approx(0, abs=1e-9)
    # A paired test at the same tokens: the student is plainly nearer the baseline.
    assert look.baseline["kl_difference"]["interval"][0] > 0
    assert look.baseline["reward_difference"]["interval"][1] < 0
    assert any(r.name == "baseline" and "more helpful" in r.text for r in look.verdict.reasons)


def test_shares_of_kinds_of_token_are_shares(several):
    kinds = by_name(several[0])["teacher", "run"].kinds
    for key in ("tokens", "kl"):
        assert sum(part[key] for part in kinds.values()) == pytest.approx(1)
    for part in kinds.values():
        assert part["kl_interval"][0] <= part["kl"] <= part["kl_interval"][1]


AT_STATES = [
    *(f"overlap/{key}" for key in ("ratio", "advantage", "mass_student", "mass_teacher")),
    "overlap/empty_fraction",
    *(f"entropy/{key}" for key in ("student", "teacher", "gap")),
    *("kl/reverse", "kl/forward", "reward/mean"),
    *(f"support/{key}" for key in ("student_mass", "teacher_mass", "tail_loss")),
]
OF_ROLLOUTS = [
    "overlap/advantage_unnormalised",
    *(f"reward/{key}" for key in ("p01", "p99", "top1pct_share")),
    *("sequence_reward", "sequence_reward/auroc"),
    *(f"rollout/{key}" for key in ("length", "truncated", "repetition")),
    *("rollout/eos_mass_student", "rollout/eos_mass_teacher"),
]


def test_every_metric_of_a_step_is_there_by_position_and_with_its_interval(several):
    look = by_name(several[0])["teacher", "run"]
    assert set(AT_STATES + OF_ROLLOUTS) <= look.agreement.keys()
    bins = look.positions["bins"]
    for key in AT_STATES:
        # The mean over all tokens is the mean over the bins, weighted by their tokens.
        if f"{key}/count" in look.agreement:
            continue  # undefined at some, which a bin does not count apart
        parts = [(v, n) for v, n in zip(bins[key], bins["tokens"], strict=True) if v is not None]
        total = sum(n for _, n in parts)
        assert sum(v * n for v, n in parts) / total == pytest.approx(look.agreement[key], abs=1e-6)
    for key in ("overlap/mass_student", "kl/reverse", "sequence_reward/auroc", "rollout/length"):
        low, high = look.intervals[key]
        assert low <= look.agreement[key] <= high


def test_the_teacher_rescues_early_and_not_late(several):
    rescue = by_name(several[0])["teacher", "run"].rescue
    wrong = {part.depth: part for part in rescue if part.outcome == "wrong"}
    assert wrong[0.1].low > 0
    assert wrong[0.9].gain < wrong[0.1].gain


def test_everything_is_in_the_file_and_nothing_undefined(several):
    found, path = several
    told = json.loads(path.read_text())  # NaN would not be JSON of ours
    assert "NaN" not in path.read_text()
    assert told["verdict"] == "go"
    assert [look["teacher"] for look in told["looks"]] == [look.teacher for look in found.looks]
    assert told["looks"][0]["positions"]["bins"]["kl/reverse"]
    assert told["student"]["run"]["accuracy"] == pytest.approx(0.33, abs=0.15)
    assert told["student"]["run"]["entropy"] > 0
    page = summary(found, ["-c", "run.yaml"])
    assert "next: tutelage train -c run.yaml" in page
    assert "the teacher helps until" in page


def test_the_command_says_the_next_command_and_exits_by_the_verdict(settings, tmp_path, capsys):
    from tutelage.config import dump_config

    path = tmp_path / "run.yaml"
    for teacher, code in (("compatible", 0), ("same_data", 3)):
        path.write_text(dump_config(settings(teacher)))
        # What is compared is the verdict on another seed than the thresholds were set on.
        assert main(["check", "-c", str(path), "--json", "--run.seed", "4"]) == code
        told = json.loads(capsys.readouterr().out)
        assert told["next"].startswith(f"tutelage {'train' if code == 0 else 'check'} -c {path}")
        assert "--run.seed 4" in told["next"]


def test_a_baseline_is_named_by_a_flag_of_its_own(settings, tmp_path, capsys):
    from tutelage.config import dump_config

    path = tmp_path / "run.yaml"
    path.write_text(dump_config(settings(check={"questions": 8, "budget": 0, "continued": 0})))
    words = ["check", "-c", str(path), "--json", "--baseline", str(model_path("same_data"))]
    assert main([*words, "-o", str(tmp_path / "check.json")]) == 3
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "check.json").read_text())
    assert [look["teacher"] for look in told["looks"]] == ["teacher", "baseline"]
    low, high = told["looks"][0]["baseline"]["kl_difference"]["interval"]
    assert low < told["looks"][0]["baseline"]["kl_difference"]["value"] < high
    assert str(model_path("same_data")) in told["next"]


def test_a_baseline_of_a_taken_name_is_refused(settings):
    taken = {"path": str(model_path("same_data"))}
    with pytest.raises(UsageError, match="is the name of"):
        check(settings(align={"teachers": {"baseline": taken}}, check={"baseline": taken}))


def test_an_objective_on_more_tokens_than_there_are_is_refused_as_in_training(settings):
    with pytest.raises(UsageError, match="at most 32"):
        check(settings(objective={"type": "top_k", "k": 64}))


def test_a_pair_that_cannot_be_combined_is_a_verdict_without_weights(settings, tmp_path):
    teacher = shutil.copytree(model_path("compatible"), tmp_path / "teacher")
    tokenizer = json.loads((teacher / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["1"], vocabulary["2"] = vocabulary["2"], vocabulary["1"]
    (teacher / "tokenizer.json").write_text(json.dumps(tokenizer))
    (teacher / "model.safetensors").unlink()
    found = check(
        settings().model_copy(
            update={"teacher": settings().teacher.model_copy(update={"path": str(teacher)})}
        )
    )
    assert found.verdict.word == "different-teacher"
    assert found.verdict.reasons[0].name == "tokens_differ"


def test_a_further_teacher_that_cannot_be_combined_does_not_stop_the_others(settings, tmp_path):
    teacher = shutil.copytree(model_path("compatible"), tmp_path / "teacher")
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 30}))
    found = check(
        settings(
            align={"teachers": {"short": {"path": str(teacher)}}},
            check={"budget": 0, "continued": 0, "questions": 8},
        )
    )
    looks = by_name(found)
    assert looks["short", "run"].verdict.reasons[0].name == "context_too_short"
    assert looks["short", "run"].verdict.word == "change-prompts"
    assert looks["teacher", "run"].agreement is not None


def test_answers_cut_at_the_limit_are_no_ground_for_a_verdict_on_the_teacher(settings):
    found = check(settings(rollout={"max_new_tokens": 8}))
    assert found.verdict.word == "change-prompts"
    assert "--rollout.max_new_tokens 16" in found.next_command()


def test_without_a_verifier_nothing_is_said_of_use(settings):
    config = settings(check={"questions": 16})
    found = check(
        config.model_copy(update={"data": config.data.model_copy(update={"verifier": None})})
    )
    look = found.looks[0]
    assert found.verdict.word == "unknown"
    assert look.capability is None
    assert look.alignment is None
    assert look.rescue == ()
    assert any("not verified" in note for note in found.notes)


def test_a_small_budget_pays_for_an_alignment_on_fewer_questions(settings):
    found = check(settings(check={"questions": 64, "budget": 6_000, "continued": 0}))
    assert found.looks[0].alignment["questions"] < 64
    assert any("pays for an alignment on" in note for note in found.notes)


def test_prompt_sets_and_contexts_are_compared_in_one_call(settings, tmp_path):
    easy = write_jsonl(tmp_path / "other.jsonl", rows(40, seed=9))
    found = check(
        settings(
            align={"contexts": ["answer"]},
            check={
                "questions": 12,
                "continued": 0,
                "budget": 10_000,
                "prompt_sets": {"other": {"prompts": str(easy)}},
            },
        )
    )
    assert set(by_name(found)) == {
        (teacher, where) for teacher in ("teacher", "self:answer") for where in ("run", "other")
    }
    assert found.student.keys() == {"run", "other"}


def test_where_templates_differ_the_first_difference_is_shown(settings, tmp_path):
    teacher = shutil.copytree(model_path("compatible"), tmp_path / "teacher")
    template = (teacher / "chat_template.jinja").read_text()
    quick = {"budget": 0, "continued": 0, "questions": 4}

    def signals():
        given = settings(str(teacher), check=quick)
        return {signal.name: signal for signal in check(given).looks[0].signals}

    # Other text that renders to the same tokens is no difference.
    (teacher / "chat_template.jinja").write_text("{# a comment #}" + template)
    assert "templates_differ" not in signals()
    (teacher / "chat_template.jinja").write_text(template.replace("default('X')", "default('Y')"))
    told = signals()["templates_differ"].evidence
    assert "4 of 4 prompts" in told
    assert "from token 1 on the student reads 'X" in told
    assert "writes 'Y" in told


def test_a_teacher_that_cannot_be_combined_does_not_hide_a_context_that_can(settings, tmp_path):
    teacher = shutil.copytree(model_path("compatible"), tmp_path / "teacher")
    tokenizer = json.loads((teacher / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["1"], vocabulary["2"] = vocabulary["2"], vocabulary["1"]
    (teacher / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = check(
        settings(
            str(teacher),
            align={"contexts": ["answer"]},
            check={"budget": 0, "continued": 0, "questions": 4},
        )
    )
    assert [look.teacher for look in found.looks] == ["teacher", "self:answer"]
    assert found.verdict.reasons[0].name == "tokens_differ"
    assert found.looks[1].agreement is not None


def test_a_prompt_set_that_changes_nothing_cannot_be_written(settings):
    with pytest.raises(UsageError, match="changes nothing"):
        settings(check={"prompt_sets": {"same": {}}})
    with pytest.raises(UsageError, match="run's own"):
        settings(check={"prompt_sets": {"run": {"user_prompt": "{question}"}}})


def test_where_nobody_is_ever_right_an_answer_is_shown_and_the_questions_are_doubted(
    settings, tmp_path
):
    wrong = write_jsonl(tmp_path / "wrong.jsonl", [{**r, "answer": "77"} for r in rows(16)])
    found = check(settings(data={"prompts": str(wrong)}, check={"questions": 8}))
    assert found.verdict.word == "change-prompts"
    assert found.verdict.reasons[0].name == "nobody_right"
    assert any("judged wrong" in note for note in found.notes)
    assert any("'77' is expected, the teacher says 'a" in note for note in found.notes)


def test_missing_prompts_and_models_are_errors_not_verdicts(settings, tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        tutelage.check(settings(data={"prompts": str(tmp_path / "nowhere.jsonl")}))
    with pytest.raises(UsageError, match="teacher"):
        tutelage.check(
            settings().model_copy(
                update={
                    "teacher": settings().teacher.model_copy(
                        update={"path": str(tmp_path / "none")}
                    )
                }
            )
        )


def test_a_tiny_untrained_pair_is_judged_without_a_crash(gpt2_pair, tmp_path):
    prompts = write_jsonl(tmp_path / "sums.jsonl", sums(12))
    found = check(
        parse_config(
            {
                "student": {"path": str(gpt2_pair[0])},
                "teacher": {"path": str(gpt2_pair[1])},
                "data": {"prompts": str(prompts), "verifier": "numeric", "held_out": 6},
                "rollout": {"max_new_tokens": 8},
                "check": {**SMALL, "questions": 4},
            }
        )
    )
    assert found.verdict.word != "go"
    assert [s.name for s in found.looks[0].signals] == ["vocabularies_differ"]


def test_it_says_what_pairs_of_the_lab_let_expect(several):
    found, path = several
    looks = {look.teacher: look for look in found.looks}
    told = {name: look.prediction for name, look in looks.items()}
    assert told["teacher"].gain > 0.2
    assert told["teacher"].known
    assert told["incompatible"].gain < 0.5 * told["teacher"].gain
    assert abs(told["same_data"].gain) < 0.15
    for prediction in told.values():
        low, high = prediction.interval
        assert low <= prediction.gain <= high
    kept = json.loads(path.read_text())["looks"][0]["prediction"]
    assert kept == told["teacher"].to_dict()
    assert "expected of training, by pairs of the lab: accuracy +" in summary(found, ("-c", "x"))
    unlike = replace(told["teacher"], distance=9.0)
    first = replace(looks["teacher"], prediction=unlike)
    other = replace(found, looks=(first, *found.looks[1:]))
    assert "outside what I know" in summary(other, ("-c", "x"))
