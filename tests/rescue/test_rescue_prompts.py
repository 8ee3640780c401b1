"""`rescue prompts` writes a prompts file that `train` takes, and says what it left out and why."""

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import tutelage
from helpers import read_jsonl, write_jsonl
from tutelage.cli import main
from tutelage.config import Config, parse_config
from tutelage.config.rescue import Mixture, PromptsRescue, Selection
from tutelage.data.prompts import load_prompts, stream_prompts
from tutelage.errors import DataError, Preempted, UsageError
from tutelage.lab.embedded import EMBEDDED_SPEC, model_path
from tutelage.lab.tasks import write_prompts
from tutelage.rescue import scoring
from tutelage.rescue.scoring import PairBench, difficulties, select

TEMPLATE = "{question} Please reason step by step, and put your final answer within \\boxed{}."
OLD = (
    "Solve this exercise as briefly as you can.\n{question}\nFinish with `Result:` and the result."
)


def sums(count: int, start: int = 0) -> list[str]:
    ends = ("How many are there?", "Give their number.", "Count all of them")
    return [
        f"Add {i} apples to the {3 * i + 1} that Ada bought on day {i % 7}. {ends[i % 3]}"
        for i in range(start, start + count)
    ]


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "Be kind."}, {"role": "user", "content": text}]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Prompts in an old template with one leak, one other prompt and one copy among them."""
    own = sums(40)
    asked = [*own[:20], sums(1, 500)[0], *own[20:30], sums(1, 700)[0], *own[30:], own[3].upper()]
    rows = [
        {
            "data_source": "shop",
            "prompt": chat(OLD.replace("{question}", text)),
            "reward_model": {"ground_truth": str(i), "style": "rule"},
            "extra_info": {"index": f"q{i}"},
        }
        for i, text in enumerate(asked)
    ]
    exam = [{"problem": text, "answer": "1", "id": f"e{i}"} for i, text in enumerate(sums(9, 500))]
    used = [{"question": f"Q: {text}\nA:"} for text in sums(9, 700)]
    return {
        "prompts": str(write_jsonl(tmp_path / "rows.jsonl", rows)),
        "exam": str(write_jsonl(tmp_path / "exam.jsonl", exam)),
        "used": str(write_jsonl(tmp_path / "used.jsonl", used)),
        "output": str(tmp_path / "clean.jsonl"),
    }


def cleaned(files: dict[str, str], **changes: Any) -> tutelage.rescue_prompts:
    settings = PromptsRescue(
        prompts=files["prompts"],
        evaluation=(files["exam"],),
        against=(files["used"],),
        **changes,
    )
    return tutelage.rescue_prompts(settings, files["output"])


def test_what_repeats_is_dropped_and_told_and_the_rest_is_kept_as_it_is(files):
    found = cleaned(files)
    before, after = read_jsonl(Path(files["prompts"])), read_jsonl(found.output)
    gone = {"q20", "q31", "q42"}
    assert after == [row for row in before if row["extra_info"]["index"] not in gone]
    report = {line["id"]: line for line in read_jsonl(found.report)}
    assert {name: line["against"] for name, line in report.items()} == {
        "q20": "evaluation",
        "q31": "training",
        "q42": "same file",
    }
    assert {name: line["matched"] for name, line in report.items()} == {
        "q20": "e0",
        "q31": "row-0",
        "q42": "q3",
    }
    assert report["q20"]["answers"] == ["20", "1"]
    assert all(line["similarity"] == 1 and line["dropped"] for line in report.values())
    told = found.summary
    assert told["dropped"] == {"evaluation": 1, "training": 1, "same file": 1}
    assert (told["rows"], told["kept"], told["written"]) == (43, 40, 40)
    assert told["leaks"] == {files["exam"]: {"questions": 9, "leaked": {"exact": 1}}}
    assert json.loads(Path(files["output"] + ".summary.json").read_text()) == told


def test_leaks_and_copies_can_be_kept_and_are_told_all_the_same(files):
    found = cleaned(files, keep_leaks=True, keep_copies=True)
    assert found.summary["written"] == 42
    kept = {line["id"]: line["dropped"] for line in read_jsonl(found.report)}
    assert kept == {"q20": False, "q31": True, "q42": False}


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_questions_are_written_in_the_template(files, ending):
    files["output"] = files["output"].replace("jsonl", ending)
    found = cleaned(files, template=TEMPLATE)
    prompts = load_prompts(str(found.output))
    assert [p.id for p in prompts] == [f"q{i}" for i in range(42) if i not in (20, 31)]
    assert {p.source for p in prompts} == {"shop"}
    assert [turn.role for turn in prompts[0].messages] == ["system", "user"]
    assert prompts[0].messages[1].content == TEMPLATE.replace("{question}", sums(1)[0])
    assert prompts[5].answer == "5"
    assert found.summary["example"]["after"].endswith("\\boxed{}.")
    assert all(row.has_id for row in stream_prompts(str(found.output)))


def test_the_template_of_the_rows_can_be_said_where_all_questions_end_alike(tmp_path: Path):
    rows = [
        {"prompt": OLD.replace("{question}", f"{i} and {i + 2}. How many are there?")}
        for i in range(20)
    ]
    prompts = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    for named, question in ((None, "0 and 2."), (OLD, "0 and 2. How many are there?")):
        settings = PromptsRescue(prompts=prompts, template="{question} Go.", written_in=named)
        found = tutelage.rescue_prompts(settings, tmp_path / "clean.jsonl")
        assert read_jsonl(found.output)[0]["prompt"] == f"{question} Go."


def test_plain_rows_keep_the_names_that_their_places_gave_them(tmp_path: Path):
    rows = [{"question": text} for text in [*sums(3), sums(1)[0], *sums(3, 5)]]
    settings = PromptsRescue(
        prompts=str(write_jsonl(tmp_path / "rows.jsonl", rows)), template="{question} Go."
    )
    found = tutelage.rescue_prompts(settings, tmp_path / "clean.jsonl")
    assert [p.id for p in load_prompts(str(found.output))] == [
        f"row-{i}" for i in (0, 1, 2, 4, 5, 6)
    ]
    assert read_jsonl(found.output)[0]["question"] == f"{sums(1)[0]} Go."


def test_prompts_from_elsewhere_are_strewn_evenly_and_named(tmp_path: Path, files):
    rows = [{"id": f"q{i}", "question": t} for i, t in enumerate([*sums(60, 900), *sums(3)])]
    other = str(write_jsonl(tmp_path / "other.jsonl", rows))
    found = cleaned(files, mix=Mixture(prompts=other, share=0.25), template=TEMPLATE)
    after = read_jsonl(found.output)
    mixed = [i for i, row in enumerate(after) if row.get("source") == "other"]
    assert len(after) == 53
    assert len(mixed) == 13 == found.summary["mixed"]["rows"]
    assert max(b - a for a, b in pairwise(mixed)) <= 5
    assert len({p.id for p in load_prompts(str(found.output))}) == 53
    assert all(
        TEMPLATE[10:] in json.dumps(row, ensure_ascii=False).replace("\\\\", "\\") for row in after
    )
    with pytest.raises(DataError, match=r"lower mix\.share"):
        cleaned(files, mix=Mixture(prompts=other, share=0.9))


# --- content ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Config]:
    """The embedded pair on a few prompts."""
    folder = tmp_path_factory.mktemp("pair")
    write_prompts(folder / "prompts.jsonl", EMBEDDED_SPEC.task.train_prompts(80, 3))

    def make(teacher: str = "compatible", **data: Any) -> Config:
        return parse_config(
            {
                "student": {"path": str(model_path("student"))},
                "teacher": {"path": str(model_path(teacher))},
                "data": {
                    "prompts": str(folder / "prompts.jsonl"),
                    "verifier": EMBEDDED_SPEC.task.verifier.model_dump(),
                    **data,
                },
                "rollout": {"max_new_tokens": 28},
                "check": {"questions": 8, "samples": 2, "continued": 4, "depths": [0.3]},
            }
        )

    return make


def selected(config: Config, output: Path, by: str, low: float, high: float) -> Any:
    settings = PromptsRescue(
        prompts=config.data.prompts,
        near=None,
        samples=2,
        select=Selection(by=by, low=low, high=high),
    )
    return tutelage.rescue_prompts(settings, output, config=config)


def test_prompts_are_scored_and_those_between_two_quantiles_kept(pair, tmp_path: Path):
    found = selected(pair(), tmp_path / "easy.jsonl", "rescue", 0.0, 0.5)
    rows = read_jsonl(found.output)
    told = found.summary["scores"]
    names = {"overlap", "kl", "student_pass_rate", "teacher_pass_rate", "learnability", "rescue"}
    assert set(told["mean"]) == names
    assert 0 < told["without_score"] < 80  # where the student is never wrong
    assert len(rows) == told["selected"] == round((80 - told["without_score"]) / 2)
    assert told["mean_selected"]["rescue"] > told["mean"]["rescue"]
    for row in rows:
        p = row["scores"]["student_pass_rate"]
        assert row["scores"]["learnability"] == p * (1 - p)
        assert p < 1
        assert 0 <= row["difficulty"] <= 0.75
    places = {row["id"]: i for i, row in enumerate(read_jsonl(Path(pair().data.prompts)))}
    assert [places[row["id"]] for row in rows] == sorted(places[row["id"]] for row in rows)


def test_scoring_goes_on_where_it_was_stopped(pair, tmp_path: Path, monkeypatch):
    whole = selected(pair(), tmp_path / "whole.jsonl", "overlap", 0.0, 1.0)
    asked: list[int] = []
    score = PairBench.score

    def counted(self: PairBench, prompts: Sequence[Any]) -> Any:
        asked.append(len(prompts))
        if len(asked) == 2:
            raise Preempted("stopped")
        return score(self, prompts)

    monkeypatch.setattr(scoring, "_BLOCK", 32)
    monkeypatch.setattr(PairBench, "score", counted)
    with pytest.raises(Preempted):
        selected(pair(), tmp_path / "parts.jsonl", "overlap", 0.0, 1.0)
    assert not (tmp_path / "parts.jsonl").exists()
    parts = selected(pair(), tmp_path / "parts.jsonl", "overlap", 0.0, 1.0)
    assert asked == [32, 32, 32, len(read_jsonl(whole.output)) - 64]
    for one, other in zip(read_jsonl(whole.output), read_jsonl(parts.output), strict=True):
        assert one["scores"] == pytest.approx(other["scores"], rel=1e-4)
    with pytest.raises(UsageError, match="another teacher"):
        selected(pair("incompatible"), tmp_path / "parts.jsonl", "overlap", 0.0, 1.0)


def test_scores_need_what_they_are_made_of(pair, tmp_path: Path):
    with pytest.raises(UsageError, match=r"data\.verifier"):
        selected(pair(verifier=None), tmp_path / "x.jsonl", "rescue", 0.0, 1.0)
    tree = pair().model_dump(mode="json", exclude={"teacher"})
    tree["rollout"]["group_size"] = 2
    sibling = parse_config({**tree, "teacher": {"type": "initial", "context": "demonstration"}})
    with pytest.raises(UsageError, match="reads no other answers"):
        selected(sibling, tmp_path / "x.jsonl", "kl", 0.0, 1.0)
    settings = PromptsRescue(prompts=pair().data.prompts, select=Selection(by="kl"))
    with pytest.raises(UsageError, match=r"-c run\.yaml"):
        tutelage.rescue_prompts(settings, tmp_path / "x.jsonl")


def test_a_template_is_compared_on_the_same_questions(pair, tmp_path: Path):
    settings = PromptsRescue(prompts=pair().data.prompts, near=None, template="{question}")
    found = tutelage.rescue_prompts(settings, tmp_path / "x.jsonl", config=pair(), compare=True)
    comparison = found.summary["comparison"]
    assert comparison["before"] == comparison["after"]  # the template changes no word here
    assert 0 < comparison["before"]["overlap/ratio"] < 1
    assert comparison["before"]["accuracy"]["teacher"] > comparison["before"]["accuracy"]["student"]


def test_difficulty_orders_prompts_and_equal_scores_share_a_place():
    scores = {
        name: {"kl": value} for name, value in zip("abcde", (3.0, 1.0, 2.0, 2.0, 9.0), strict=True)
    }
    scores["f"] = {"overlap": 1.0}
    difficulty = difficulties(scores, "kl")
    assert difficulty == {"b": 0.0, "c": 0.375, "d": 0.375, "a": 0.75, "e": 1.0}
    assert select(difficulty, Selection(by="kl", high=0.4)) == {"b", "c"}
    assert (
        difficulties({n: {"overlap": s["kl"]} for n, s in scores.items() if "kl" in s}, "overlap")[
            "e"
        ]
        == 0.0
    )


# --- faults ----------------------------------------------------------------------------------


def test_faults_end_with_their_exit_codes_and_say_what_to_do(files, tmp_path: Path, capsys):
    rows, output = files["prompts"], files["output"]
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    nothing = write_jsonl(tmp_path / "nothing.jsonl", [{"text": "no prompt", "answer": "1"}])
    cases: list[tuple[list[str], int, str]] = [
        ([str(empty)], 4, "has no rows"),
        ([str(nothing)], 4, "has no prompt"),
        ([rows, "--evaluation", "missing.json"], 4, "missing.json"),
        ([rows, "--against", rows], 4, "no prompt is left: 43 of 43 rows repeat other prompts"),
        ([rows, "--near", "semantic"], 5, "--near minhash"),
        ([rows, "--template", "the same for all"], 2, "{question}"),
        ([rows, "--template", "{question} {hint}"], 4, "{hint}"),
        ([rows, "--select", "kl"], 2, "-c run.yaml"),
        ([rows, "--select", "kl", "--quantiles", "0.5", "0.5"], 2, "low (0.5)"),
        ([rows, "--compare"], 2, "-c run.yaml"),
        ([rows, "--threshold", "2"], 2, "near"),
        ([rows, "--rollout.batch_size", "2"], 2, "-c run.yaml"),
    ]
    for words, code, message in cases:
        assert main(["rescue", "prompts", *words, "-o", output]) == code, words
        assert message in capsys.readouterr().err
        assert not Path(output).exists()
    assert main(["rescue", "prompts", rows, "-o", "clean.txt"]) == 2
    assert ".jsonl or .parquet" in capsys.readouterr().err


def test_the_command_prints_what_the_function_gives(files, capsys):
    words = ["rescue", "prompts", files["prompts"], "-o", files["output"]]
    more = ["--evaluation", files["exam"], "--against", files["used"], "--template", TEMPLATE]
    assert main([*words, *more, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    found = cleaned(files, template=TEMPLATE)
    same = {key: value for key, value in found.to_dict().items() if key != "seconds"}
    assert {key: value for key, value in printed.items() if key != "seconds"} == same
    assert main([*words, *more]) == 0
    text = capsys.readouterr().out
    assert "Finish with `Result:` and the result." in text
    assert "43 rows (42 different questions)" in text
