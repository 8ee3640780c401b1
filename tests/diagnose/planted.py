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
    ends = {**HEALTHY_STEP, **changed}
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


FLAT = {"after": 0.34}
PLANTED = {
    "stop_ids": healthy(
        noted={"stop_ids_differ": "the student stops at [2], the teacher at [0]"},
        evaluations=evaluations(**FLAT, **{"stop/reward": -15.0, "stop/teacher": 1e-7}),
    ),
    "template": healthy(
        config=config(teacher={"chat_template": "other.jinja"}),
        evaluations=evaluations(**FLAT, teacher=0.2, **{"sequence_reward/auroc": 0.85}),
    ),
    "same_model": healthy(evaluations=evaluations(**FLAT, **{"kl/reverse": 1e-6})),
    "broken_teacher": healthy(
        evaluations=evaluations(**FLAT, teacher=0.0, **{"overlap/mass_student": 0.5})
    ),
    "engine_mismatch": healthy(steps=steps(**{"rollout/drift_k3": (0.02, 0.02)})),
    "response_limit": healthy(
        evaluations=evaluations(**FLAT, **{"rollout/truncated": 0.6, "teacher/truncated": 0.5})
    ),
    "truncated_support": healthy(
        config=config(objective={"type": "top_k", "k": 2, "tail": "drop"}),
        steps=steps(**{"support/teacher_mass": (0.85, 0.85)}),
        evaluations=evaluations(**FLAT),
    ),
    "narrow_support": healthy(
        config=config(objective={"type": "top_k", "k": 4}),
        steps=steps(**{"support/teacher_mass": (0.955, 0.955)}),
        evaluations=evaluations(**FLAT),
    ),
    "reward_tail": healthy(
        config=config(objective={"type": "sampled"}), evaluations=evaluations(**FLAT)
    ),
    "stale_rollouts": healthy(
        config=config(rollout={"delay_steps": 8}),
        steps=steps(**{"rollout/age": (8.0, 8.0), "rollout/drift_k3": (0.1, 0.1)}),
        evaluations=evaluations(**FLAT),
    ),
    "learning_rate": healthy(
        steps=steps(**{"update/kl": (5.0, 1.0)}), evaluations=evaluations(after=0.0)
    ),
    "small_steps": healthy(
        steps=steps(**{"update/kl": (3e-6, 3e-6)}),
        evaluations=evaluations(**FLAT, **{"overlap/mass_student": 0.74}),
    ),
    "thinking_pattern": healthy(
        evaluations=evaluations(after=0.05, **{"overlap/mass_student": 0.6})
    ),
    "no_new_knowledge": healthy(
        evaluations=evaluations(
            **FLAT,
            teacher=0.33,
            **{"sequence_reward/auroc": 0.55, "entropy/teacher": 0.2},
        )
    ),
}
SYMPTOMS = {
    "length_collapse": {"rollout/length": (18.0, 6.0), "kl/reverse": (0.8, 0.05)},
    "length_inflation": {"rollout/truncated": (0.0, 0.9)},
    "repetition": {"rollout/repetition": (0.0, 0.6)},
    "entropy_collapse": {"entropy/student": (0.2, 0.001), "entropy/teacher": (0.1, 0.1)},
    "non_finite": {},
}


def symptom(name):
    """A run with one symptom and no cause."""
    records = steps(**SYMPTOMS[name])
    if name == "non_finite":
        for record in records[-3:]:
            record["applied"] = False
    return healthy(steps=records, evaluations=evaluations(after=0.1))


_BINS = {
    "tokens": [10.0] * 16,
    "kl/reverse": [0.1] * 12 + [2.0] * 4,
    "entropy/teacher": [0.1] * 12 + [1.0] * 4,
}
DEEP = healthy(
    positions=[{"step": i, "bins": _BINS} for i in range(STEPS)], evaluations=evaluations(**FLAT)
)
ROUNDED = healthy(noted={"precisions_differ": "the teacher's weights are bfloat16"})
PROPOSING = (*PLANTED.values(), *(symptom(name) for name in SYMPTOMS), DEEP, ROUNDED)
