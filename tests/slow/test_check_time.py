"""How long a check of the embedded pair takes, with the settings that a user has who sets none."""

import time

import pytest

from helpers import write_jsonl
from tutelage.config import parse_config
from tutelage.diagnose.checking import check
from tutelage.lab.embedded import EMBEDDED_SPEC, VERIFIER, model_path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    ("teacher", "word"), [("compatible", "go"), ("incompatible", "cold-start")]
)
def test_a_check_of_the_embedded_pair_takes_at_most_half_a_minute(tmp_path, teacher, word):
    """Processor time, since others may use the machine."""
    rows = [
        {"id": p.id, "prompt": [{"role": "user", "content": p.question}], "answer": p.answer}
        for p in EMBEDDED_SPEC.task.eval_prompts(256, seed=5)
    ]
    config = parse_config(
        {
            "student": {"path": str(model_path("student"))},
            "teacher": {"path": str(model_path(teacher))},
            "data": {
                "prompts": str(write_jsonl(tmp_path / "prompts.jsonl", rows)),
                "verifier": VERIFIER.model_dump(),
            },
            "rollout": {"max_new_tokens": 28},
        }
    )
    before = time.process_time()
    found = check(config)
    assert time.process_time() - before < 30
    assert found.verdict.word == word
