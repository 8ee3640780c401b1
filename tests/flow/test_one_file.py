"""The whole method in one plain file is an oracle: the same seed gives the same losses."""

import importlib.util
from pathlib import Path

import pytest

from helpers import read_jsonl, sums, write_jsonl
from tutelage.config import parse_config
from tutelage.lab.embedded import EMBEDDED_SPEC, model_path
from tutelage.training import train

FILE = Path(__file__).parents[2] / "docs" / "opd_in_one_file.py"
STEPS = 5


@pytest.fixture
def plain():
    spec = importlib.util.spec_from_file_location("opd_in_one_file", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.STEPS = STEPS
    return module


@pytest.mark.parametrize("pair", ["without a template", "with one"])
@pytest.mark.parametrize("seed", [0, 1])
def test_its_losses_are_those_of_train(plain, gpt2_pair, tmp_path, pair, seed):
    if pair == "with one":
        models = model_path("student"), model_path("compatible")
        drawn = EMBEDDED_SPEC.task.train_prompts(24, seed)
        rows = [{"id": p.id, "question": p.question} for p in drawn]
    else:
        models = gpt2_pair
        rows = [{"id": row["id"], "question": row["question"]} for row in sums(24)]
        plain.MAX_NEW_TOKENS = 10
    prompts = write_jsonl(tmp_path / "prompts.jsonl", rows)
    config = parse_config(
        {
            "student": {"path": str(models[0])},
            "teacher": {"path": str(models[1])},
            "data": {"prompts": str(prompts), "held_out": 0},
            "rollout": {
                "prompts_per_step": plain.PROMPTS_PER_STEP,
                "group_size": plain.GROUP,
                "max_new_tokens": plain.MAX_NEW_TOKENS,
            },
            "optimizer": {"lr": plain.LR},
            "run": {"dir": str(tmp_path / "run"), "steps": STEPS, "seed": seed, "save_every": 0},
        }
    )
    result = train(config)
    losses = [r["loss"] for r in read_jsonl(result.run / "metrics.jsonl") if r["kind"] == "train"]
    plain.SEED = seed
    found, _ = plain.train(*models, prompts)
    assert found == pytest.approx(losses, rel=2e-4)


def test_it_stays_short_enough_to_read():
    assert len(FILE.read_text().splitlines()) <= 150
