"""Prompts scored by a pair whose sides are at servers."""

import json
import shutil

import pytest

from helpers import read_jsonl
from tutelage.config import parse_config
from tutelage.config.rescue import PromptsRescue, Selection
from tutelage.errors import ServerError, UsageError
from tutelage.lab.embedded import EMBEDDED_SPEC, VERIFIER, model_path
from tutelage.rescue.prompts import rescue_prompts

COUNT = 12


@pytest.fixture
def scored(serve, tmp_path):
    rows = [
        {"id": p.id, "messages": [{"role": "user", "content": p.question}], "answer": p.answer}
        for p in EMBEDDED_SPEC.task.eval_prompts(COUNT, seed=3)
    ]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def score(name, by, *, teacher=None, student=None, objective=None):
        config = parse_config(
            {
                "student": {"path": str(model_path("student")), "server": student},
                "teacher": {"path": str(model_path("compatible")), "server": teacher},
                "data": {"prompts": str(prompts), "verifier": VERIFIER.model_dump()},
                "rollout": {"max_new_tokens": 28, "batch_size": 8},
                **({} if objective is None else {"objective": objective}),
            }
        )
        settings = PromptsRescue(
            prompts=str(prompts), near=None, samples=2, select=Selection(by=by, low=0.0, high=1.0)
        )
        rescue_prompts(settings, tmp_path / name, config=config)
        return {row["id"]: row["scores"] for row in read_jsonl(tmp_path / name)}

    return score


def test_a_served_teacher_gives_the_scores_of_the_one_in_process(scored, serve):
    fake = serve(model_path("compatible"), max_logprobs=-1, max_model_len=128)
    local = scored("local.jsonl", "kl")
    served = scored("served.jsonl", "kl", teacher={"url": fake.url})
    assert len(served) == COUNT
    assert served.keys() == local.keys()
    for name, scores in served.items():
        assert scores == pytest.approx(local[name], abs=1e-4)
    asked = fake.count("/v1/completions")
    again = scored("served.jsonl", "kl", teacher={"url": fake.url})
    assert again == served  # from the ledger
    assert fake.count("/v1/completions") - asked < 6  # what it is was asked, and no score


def test_a_teacher_that_lists_few_tokens_still_scores_the_overlap(scored, serve):
    fake = serve(model_path("compatible"), max_logprobs=20, max_model_len=128)
    with pytest.raises(UsageError, match="objective top_k with support teacher, or sampled"):
        scored("none.jsonl", "overlap", teacher={"url": fake.url})
    objective = {"type": "top_k", "support": "teacher", "k": 8}
    local = scored("local.jsonl", "overlap", objective=objective)
    served = scored("served.jsonl", "overlap", teacher={"url": fake.url}, objective=objective)
    assert len(served) == COUNT
    for name, scores in served.items():
        assert scores["overlap"] == pytest.approx(local[name]["overlap"], abs=1e-3)


def test_a_student_at_a_server_is_sampled_there_and_a_fault_costs_no_score(scored, serve, tmp_path):
    copy = shutil.copytree(model_path("student"), tmp_path / "copy")
    fake = serve(copy, max_logprobs=-1, max_model_len=128)
    server = {"url": fake.url, "weights": str(copy), "retries": 0}
    fake.faults["/v1/completions"] = [lambda good: good] * 20 + [lambda good: (500, {}, {})]
    with pytest.raises(ServerError):
        scored("served.jsonl", "kl", student=server)
    fake.faults.clear()
    found = scored("served.jsonl", "kl", student=server)
    assert len(found) == COUNT
    assert all(scores["kl"] > 0 for scores in found.values())
    assert any(body and "seed" in body for _, body in fake.asked)
