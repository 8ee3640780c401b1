"""Histories as a healthy run records them, to plant a cause in."""

from dataclasses import replace

from tutelage.config import parse_config
from tutelage.signals.history import History

STEPS = 20


def config(**sections):
    tree = {
        "student": {"path": "student"},
        "teacher": {"path": "teacher"},
        "data": {"prompts": "prompts.jsonl", "verifier": "numeric"},
        "rollout": {"max_new_tokens": 28},
        "optimizer": {"lr": 1e-3},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    return parse_config(tree)


def judged(accuracy, half=0.05):
    return {
        "accuracy": accuracy,
        "accuracy/low": max(0.0, accuracy - half),
        "accuracy/high": min(1.0, accuracy + half),
    }


def of_teacher(accuracy, half=0.05):
    return {f"teacher/{key}": value for key, value in judged(accuracy, half).items()}


HEALTHY_STEP = {
    "entropy/student": (0.22, 0.05),
    "entropy/teacher": (0.01, 0.01),
    "kl/reverse": (0.7, 0.1),
    "overlap/mass_student": (0.93, 0.99),
    "rollout/length": (17.0, 16.5),
    "rollout/truncated": (0.01, 0.0),
    "rollout/repetition": (0.001, 0.001),
    "rollout/age": (0.0, 0.0),
    "rollout/drift_k3": (1e-13, 1e-13),
    "reward/p01": (-12.0, -5.0),
    "reward/p99": (0.4, 0.1),
    "sequence_reward/auroc": (0.93, 0.95),
    "stop/reward": (0.0, 0.0),
    "stop/student": (1.0, 1.0),
    "stop/teacher": (1.0, 1.0),
    "support/student_mass": (0.999, 0.999),
    "support/teacher_mass": (0.999, 0.999),
    "update/kl": (0.01, 0.005),
    "grad_norm": (1.0, 1.0),
}


def steps(**changed):
    """Records between a start and an end; a key set to None was not recorded."""
    ends = {**HEALTHY_STEP, **{k: v for k, v in changed.items()}}
    return [
        {"kind": "train", "step": i + 1, "applied": True}
        | {
            key: a + (b - a) * i / (STEPS - 1)
            for key, (a, b) in ((k, v) for k, v in ends.items() if v is not None)
        }
        for i in range(STEPS)
    ]


def evaluations(before=0.33, after=0.9, teacher=0.98, **start):
    first = {key: a for key, (a, _) in HEALTHY_STEP.items() if key != "update/kl"}
    first |= {"teacher/length": 17.0, "teacher/truncated": 0.0, **of_teacher(teacher)}
    return [
        {"kind": "eval", "step": 0, **judged(before), **first, **start},
        {"kind": "eval", "step": STEPS, **judged(after)},
    ]


def healthy(**fields):
    base = History(config=config(), steps=steps(), evaluations=evaluations())
    return replace(base, **fields)
