"""Short runs of the embedded pair with a planted fault."""

import pytest

import tutelage
from tutelage.config import parse_config
from tutelage.lab.embedded import EMBEDDED_SPEC, VERIFIER, model_path
from tutelage.lab.tasks import write_prompts

FAULTS = {
    "healthy": {"run": {"steps": 16}},
    "learning_rate": {"optimizer": {"lr": 6e-2}},
    "same_model": {"teacher": {"path": str(model_path("student"))}},
    "thinking_pattern": {"teacher": {"path": str(model_path("incompatible"))}},
    "template": {"teacher": {"chat_template": "TEMPLATE"}},
}


@pytest.fixture(scope="session")
def fault_runs(tmp_path_factory):
    """A short run of each fault, by the cause that was planted."""
    folder = tmp_path_factory.mktemp("faults")
    task = EMBEDDED_SPEC.task
    write_prompts(folder / "prompts.jsonl", task.train_prompts(16 * 32, 7))
    write_prompts(folder / "held_out.jsonl", task.eval_prompts(100))
    # Without the sign that asks for the answer.
    (folder / "other.jinja").write_text("^X{{ messages[0].content }}")
    runs = {}
    for name, changed in FAULTS.items():
        tree = {
            "student": {"path": str(model_path("student"))},
            "teacher": {"path": str(model_path("compatible"))},
            "data": {
                "prompts": str(folder / "prompts.jsonl"),
                "eval_prompts": str(folder / "held_out.jsonl"),
                "verifier": VERIFIER.model_dump(),
            },
            "rollout": {"prompts_per_step": 32, "max_new_tokens": 28},
            "optimizer": {"lr": 2e-3, "betas": [0.9, 0.95]},
            "evaluation": {"every": 0},
            "run": {"dir": str(folder / name), "steps": 12, "seed": 7, "save_every": 6},
        }
        for section, settings in changed.items():
            tree[section] = {**tree[section], **settings}
        if name == "template":
            tree["teacher"]["chat_template"] = str(folder / "other.jinja")
        runs[name] = tutelage.train(parse_config(tree)).run
    return runs
