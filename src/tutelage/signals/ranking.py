"""All causes of a run, the likeliest first."""

from collections.abc import Callable
from dataclasses import replace

from tutelage.signals import causes as c
from tutelage.signals import dynamics as d
from tutelage.signals import mass, static
from tutelage.signals.guards import Signal
from tutelage.signals.history import History

Rule = Callable[[History], c.Cause | None]
RULES: tuple[Rule, ...] = (
    static.stop_ids,
    static.template,
    static.vocabulary,
    static.precision,
    static.same_model,
    static.broken_teacher,
    static.engine_mismatch,
    mass.response_limit,
    mass.truncated_support,
    mass.narrow_support,
    mass.reward_tail,
    mass.stale_rollouts,
    d.learning_rate,
    d.small_steps,
    d.thinking_pattern,
    d.no_new_knowledge,
    d.unreliable_depth,
    d.length_collapse,
    d.length_inflation,
    d.repetition,
    d.entropy_collapse,
    d.non_finite,
)


def rank(history: History) -> list[c.Cause]:
    """What the rules find: by confidence, then in the order of reasoning.

    A symptom is no surer than medium beside a cause that is sure.
    """
    found = [cause for rule in RULES if (cause := rule(history)) is not None]
    if any(cause.confidence == "high" and cause.stage < c.SYMPTOM for cause in found):
        found = [
            replace(cause, confidence="medium")
            if cause.stage == c.SYMPTOM and cause.confidence == "high"
            else cause
            for cause in found
        ]
    order = {name: place for place, name in enumerate(c.CONFIDENCES)}
    return sorted(found, key=lambda cause: (order[cause.confidence], cause.stage))


def warnings(history: History) -> list[Signal]:
    """The causes that are sure already, as warnings while the run goes on."""
    return [cause.as_warning() for cause in rank(history) if cause.confidence == "high"]


# What each rule cannot do without: the first of these that a run lacks.
NEEDS: dict[str, tuple[str, ...]] = {
    "stop_ids": ("stop/reward",),
    "template": ("teacher/accuracy",),
    "same_model": ("kl/reverse",),
    "broken_teacher": ("teacher/accuracy",),
    "engine_mismatch": ("rollout/drift_k3",),
    "response_limit": ("rollout/truncated",),
    "truncated_support": ("support/teacher_mass",),
    "narrow_support": ("support/teacher_mass", "entropy/teacher"),
    "reward_tail": ("reward/p01",),
    "stale_rollouts": ("rollout/age",),
    "learning_rate": ("update/kl",),
    "thinking_pattern": ("overlap/mass_student",),
    "no_new_knowledge": ("sequence_reward/auroc",),
    "length_collapse": ("rollout/length",),
    "length_inflation": ("rollout/length",),
    "repetition": ("rollout/repetition",),
    "entropy_collapse": ("entropy/student", "entropy/teacher"),
}


def unread(history: History) -> list[str]:
    """Rules that could not be asked, since their signal was not recorded.

    Those that the run's objective has no use for are not among them.
    """
    objective = None if history.config is None else history.config.objective.type
    silent = []
    for name, keys in NEEDS.items():
        if name.endswith("_support") and objective not in (None, "top_k"):
            continue
        if name == "reward_tail" and objective not in (None, "sampled"):
            continue
        if any(history.at_start(key) is None for key in keys):
            silent.append(name)
    return silent
