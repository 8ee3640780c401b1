"""A cold start whose teacher answers at a server."""

import json

import pytest

from helpers import read_jsonl
from tutelage.config import parse_config
from tutelage.errors import ServerError
from tutelage.lab.embedded import EMBEDDED_SPEC, VERIFIER, model_path
from tutelage.rescue.cold_start import cold_start


@pytest.fixture
def config(serve, tmp_path):
    fake = serve(model_path("compatible"), max_model_len=128)
    rows = [
        {"id": p.id, "messages": [{"role": "user", "content": p.question}], "answer": p.answer}
        for p in EMBEDDED_SPEC.task.eval_prompts(30, seed=3)
    ]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = {
        "student": {"path": str(model_path("student"))},
        "teacher": {
            "path": str(model_path("compatible")),
            "server": {"url": fake.url, "retries": 0},
        },
        "data": {"prompts": str(prompts), "held_out": 6, "verifier": VERIFIER.model_dump()},
        "rollout": {"max_new_tokens": 28, "batch_size": 8},
        "cold_start": {"steps": 3, "batch_size": 8, "check": False, "right_only": True},
    }
    return fake, parse_config(tree)


def test_answers_come_from_the_server_and_a_fault_costs_none_of_them(config, tmp_path):
    fake, settings = config

    def broken(answer):
        return (500, {}, {"error": "broken"})

    fake.faults["/v1/completions"] = [lambda answer: answer] * 12 + [broken]
    with pytest.raises(ServerError):
        cold_start(settings, tmp_path / "cold")
    kept = read_jsonl(tmp_path / "cold" / "rollouts.jsonl")
    assert 0 < len(kept) < 24
    fake.faults.clear()
    found = cold_start(settings, tmp_path / "cold", resume=True)
    lines = read_jsonl(tmp_path / "cold" / "rollouts.jsonl")
    assert lines[: len(kept)] == kept
    assert len({line["unit"] for line in lines}) == len(lines) == found.answers["tries"]
    assert found.answers["kept"] >= 22
    assert all(line["reward"] == 1 for line in lines if not line["rejected"])
    assert found.imitation["steps"] == 3
