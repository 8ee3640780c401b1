"""Accuracy and agreement by data source; unknown is counted and is not wrong."""

import pytest
import torch

from helpers import read_jsonl, sums, write_jsonl
from tutelage.evaluation import Evaluation, Question
from tutelage.metrics import SOURCES, by_source, summarise_sources
from tutelage.ops.intervals import proportion_interval
from tutelage.types import Prompt, Rollout


def rollout(source, reward, name="p", index=0):
    metadata = {} if source is None else {"data_source": source}
    return Rollout(
        prompt=Prompt(id=name, text="?", metadata=metadata),
        index=index,
        prompt_ids=(1,),
        completion_ids=(1, 2),
        logprobs=(0.0, 0.0),
        finish_reason="stop",
        text="",
        policy_step=0,
        reward=reward,
    )


def test_a_row_names_its_source_as_verl_does_or_in_plain_words():
    assert Prompt(id="a", text="?", metadata={"data_source": "x", "source": "y"}).source == "x"
    assert Prompt(id="a", text="?", metadata={"source": "y"}).source == "y"
    assert Prompt(id="a", text="?", metadata={"source": ["y"]}).source is None
    assert Prompt(id="a", text="?").source is None


def test_accuracy_by_source_is_the_mean_over_its_questions():
    rewards = {"aime": [1.0, 0.0, 0.0], "gsm8k": [1.0, 1.0], None: [0.0]}
    questions = [
        Question((rollout(source, reward),)) for source, rs in rewards.items() for reward in rs
    ]
    record = Evaluation(tuple(questions)).record()
    assert record["accuracy"] == pytest.approx(3 / 6)
    for source, rs in rewards.items():
        if source is not None:
            key = f"accuracy/source/{source}"
            assert record[key] == pytest.approx(sum(rs) / len(rs))
            assert (record[f"{key}/low"], record[f"{key}/high"]) == proportion_interval(rs)
            assert record[f"{key}/questions"] == len(rs)
    assert not any("None" in key for key in record)


def test_unknown_samples_are_counted_and_are_not_wrong():
    samples = (rollout("a", 1.0), rollout("a", None, index=1))
    questions = (Question(samples), Question((rollout("b", None),)))
    record = Evaluation(questions).record()
    assert record["accuracy"] == 1
    assert record["accuracy/questions"] == 1
    assert record["accuracy/unknown"] == 2
    assert record["accuracy/source/a"] == 1
    assert "accuracy/source/b" not in record
    assert Evaluation(questions[1:]).record() == {"accuracy/unknown": 1}
    assert Evaluation(questions[1:], was_judged=False).record() == {}


def test_names_of_sources_become_parts_of_keys():
    prompts = [rollout(name, None).prompt for name in ("a/b c", "a/b c", "é", "a_b_c", 7)]
    assert by_source(prompts) == {"a_b_c": [0, 1, 3], "_": [2], "7": [4]}
    assert max(map(len, by_source([rollout("x" * 1000, None).prompt]))) == 64


def test_a_source_for_every_row_does_not_flood_the_record():
    prompts = [rollout(f"s{i}", None).prompt for i in range(500)] + [
        rollout("big", None).prompt
    ] * 2
    found = by_source(prompts)
    assert len(found) == SOURCES
    assert found["big"] == [500, 501]


def test_agreement_by_source_is_over_its_own_tokens():
    rollouts = [rollout("a", 1.0), rollout("b", 1.0), rollout("a", 0.0), rollout(None, 0.0)]
    rows = torch.tensor([0, 0, 1, 2, 2, 3])
    table = {
        "kl/reverse": torch.tensor([1.0, 2.0, 10.0, 3.0, 4.0, 100.0]),
        "overlap/ratio": torch.tensor([0.5, 0.5, torch.nan, 1.0, torch.nan, 0.0]),
    }
    record = summarise_sources(rollouts, table, rows)
    assert record == {
        "kl/reverse/source/a": pytest.approx(2.5),
        "kl/reverse/source/b": pytest.approx(10.0),
        "overlap/ratio/source/a": pytest.approx(2 / 3),
    }


def test_a_run_records_each_source_and_says_how_it_read_its_prompts(gpt2_pair, tmp_path):
    from tutelage import parse_config, train

    rows = [{**row, "data_source": ("even", "odd")[i % 2]} for i, row in enumerate(sums(40))]
    notes = []
    config = parse_config(
        {
            "student": {"path": str(gpt2_pair[0])},
            "teacher": {"path": str(gpt2_pair[1])},
            "data": {
                "prompts": str(write_jsonl(tmp_path / "prompts.jsonl", rows)),
                "held_out": 9,
                "verifier": "numeric",
            },
            "rollout": {"prompts_per_step": 4, "max_new_tokens": 6},
            "run": {"dir": str(tmp_path / "run"), "steps": 1},
        }
    )
    train(config, observer=lambda record: notes.append(record))
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    for record in (r for r in records if r["kind"] == "eval"):
        names = ("even", "odd")
        counts = [record[f"accuracy/source/{name}/questions"] for name in names]
        means = [record[f"accuracy/source/{name}"] for name in names]
        total = sum(m * c for m, c in zip(means, counts, strict=True))
        assert record["accuracy"] == pytest.approx(total / sum(counts))
        assert record["kl/reverse/source/even"] != record["kl/reverse/source/odd"]
    told = [note["text"] for note in notes if "question/answer layout" in note.get("text", "")]
    assert told == [
        f"{config.data.prompts}: question/answer layout, 40 rows; prompt: question; "
        "answer: answer; id: id; source: data_source"
    ]
