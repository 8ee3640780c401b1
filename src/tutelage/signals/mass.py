"""Rules on limits, supports, tails of the reward and the age of rollouts."""

import math
from statistics import fmean

from tutelage.config import (
    Bucket,
    Drop,
    NoBaseline,
    ReferenceCode,
    Renormalise,
    Sampled,
    TeacherTarget,
    TopK,
)
from tutelage.signals.causes import (
    DRIFT,
    FOREIGN_MASS,
    MASS,
    TRUNCATED_MUCH,
    TRUNCATED_SOME,
    Cause,
    Confidence,
    cuts,
    number,
    outcome,
    runs_on,
    teacher_is_no_better,
)
from tutelage.signals.history import WINDOW, History

OUTSIDE_TEACHER, OUTSIDE_STUDENT = 0.9, 0.02  # reported: T(K) < .9; S(K) falls by 2 points
UNNAMED = 0.01  # share of states, from which a student that stood still was held back
LONG_TAIL, REWARD_P99 = -5.0, 2.0  # nats; reported: p99 > 2 precedes collapse
OLD = 2.0  # reported: steps of age from which stale rollouts hurt the reverse KL


def response_limit(h: History) -> Cause | None:
    """Answers were cut from the beginning."""
    cut = h.at_start("rollout/truncated")
    if cut is None or cut < TRUNCATED_SOME:
        return None
    most = h.config.rollout.max_new_tokens if h.config is not None else None
    sure = (cut >= TRUNCATED_MUCH or h.was_hurt) and not runs_on(h)
    return Cause(
        name="response_limit",
        confidence="high" if sure else "medium",
        stage=MASS,
        text="Answers are cut before they end, so what they are judged and taught by is missing",
        evidence=(
            *([f"rollout.max_new_tokens is {most}"] if most else []),
            *cuts(h),
            *outcome(h),
        ),
        advice="raise rollout.max_new_tokens until few answers are cut",
        change={} if most is None else {"rollout.max_new_tokens": 2 * most},
        source="response length (2604.13016, figure 11; truncation > 25 %)",
        signal="rollout/truncated",
    )


def truncated_support(h: History) -> Cause | None:
    """Mass outside the support is neither taught nor held back."""
    objective = None if h.config is None else h.config.objective
    if not isinstance(objective, TopK) or isinstance(objective.tail, Bucket):
        return None
    theirs = h.at_start("support/teacher_mass")
    first, last = h.first("support/student_mass"), h.last("support/student_mass")
    lost = None if first is None or last is None else first - last
    missing = theirs is not None and theirs < OUTSIDE_TEACHER
    leaks = lost is not None and lost > OUTSIDE_STUDENT
    confidence: Confidence = "low"
    if missing or leaks or objective.k < 4:
        confidence = "high" if h.was_hurt else "medium"
    tail = objective.tail
    what = {
        Drop: "the terms outside it are dropped",
        Renormalise: "both sides are renormalised on it",
        ReferenceCode: "the released code's weights stand for the rest",
    }[type(tail)]
    evidence = [f"the objective compares {objective.k} tokens of the {objective.support}; {what}"]
    if theirs is not None:
        evidence.append(f"at the start they hold {number(theirs)} of the teacher's mass")
    if first is not None and last is not None:
        evidence.append(f"of the student's they hold {number(first)}, at the end {number(last)}")
    return Cause(
        name="truncated_support",
        confidence=confidence,
        stage=MASS,
        text="The objective looks at few tokens and has no term for the rest",
        evidence=(*evidence, *outcome(h)),
        advice="give the rest a bucket, and compare 16 tokens or more",
        change={"objective.tail": {"type": "bucket"}, "objective.k": max(16, objective.k)},
        source="top-k mass leak (verl #7856; 2604.13016, equation 5)",
        signal="support/teacher_mass",
    )


def unnamed_states(h: History) -> float | None:
    """A share of the states, at least, at which most of the teacher lies outside the support.

    With the mass m outside at a state, the teacher's entropy there is at least that of the coin m,
    which is 2 ln 2 m or more up to m = 1/2. So what the mean of m exceeds the mean entropy over
    2 ln 2 by is of states where m is above 1/2, and m is 1 at most.
    """
    held, entropy = (h.series(key)[:WINDOW] for key in ("support/teacher_mass", "entropy/teacher"))
    if not held or not entropy:
        return None

    def least(steps: int) -> float:
        return 1 - fmean(held[:steps]) - fmean(entropy[:steps]) / (2 * math.log(2))

    # Also at the first step: large steps may have led the student away within the window.
    return min(least(1), least(WINDOW))


def narrow_support(h: History) -> Cause | None:
    """The bucket says that the teacher wants another token, and not which."""
    objective = None if h.config is None else h.config.objective
    if not isinstance(objective, TopK) or not isinstance(objective.tail, Bucket):
        return None
    if not isinstance(objective.target, TeacherTarget):
        return None  # the mass recorded is of the target, the entropy of the teacher
    share, shared = unnamed_states(h), h.at_start("overlap/mass_student")
    if share is None or share < UNNAMED or (shared is not None and shared < FOREIGN_MASS):
        return None  # of a teacher that thinks otherwise a wider support would show no more
    if not h.was_hurt or h.outcome == "worse":
        return None  # it holds a student back, and does not push it down
    return Cause(
        name="narrow_support",
        confidence="medium" if teacher_is_no_better(h) else "high",
        stage=MASS,
        text="The token that the teacher wants is often not among those that the objective names",
        evidence=(
            f"at {share:.1%} of the first steps' tokens, or more, most of the teacher lies outside "
            f"the {objective.k} tokens of the {objective.support} that are compared",
            *outcome(h),
        ),
        advice="compare more tokens (objective.k), or the teacher's likeliest (objective.support)",
        change={"objective.k": max(16, 2 * objective.k)},
        source="k = 1 and k = 4 of the student's (docs/lab.md, suite support)",
        signal="support/teacher_mass",
    )


def reward_tail(h: History) -> Cause | None:
    """A sampled-token reward without a bound: a few tokens decide the step."""
    objective = None if h.config is None else h.config.objective
    if not isinstance(objective, Sampled) or objective.bound is not None:
        return None
    low, high = h.at_start("reward/p01"), h.at_start("reward/p99")
    share = h.at_start("reward/top1pct_share")
    tail = (low is not None and low < LONG_TAIL) or (high is not None and high > REWARD_P99)
    confidence: Confidence = "low"
    if tail and isinstance(objective.baseline, NoBaseline):
        confidence = "high" if h.was_hurt else "medium"
    evidence = ["the reward is the sampled token's log-ratio alone, without a bound"]
    if low is not None and high is not None:
        evidence.append(f"its 1st and 99th percentiles are {number(low)} and {number(high)} nats")
    if share is not None:
        evidence.append(f"the largest 1 % of the tokens hold {share:.0%} of its size")
    return Cause(
        name="reward_tail",
        confidence=confidence,
        stage=MASS,
        text="The tail of the sampled token's reward decides the update",
        evidence=(*evidence, *outcome(h)),
        advice="compare the likeliest tokens (objective top_k with a bucket), or bound the reward",
        change={"objective": {"type": "top_k"}},
        source="reward-tail blow-up (p99 > 2 precedes collapse)",
        signal="grad_norm",
    )


def stale_rollouts(h: History) -> Cause | None:
    """Rollouts are older than the policy that learns from them."""
    age = h.last("rollout/age")
    if age is None or age < 1:
        return None
    drift = h.worst("rollout/drift_k3")  # a student that collapsed no longer moves at the end
    apart = drift is not None and drift > DRIFT and age > OLD
    together = 1 if h.config is None else h.config.rollout.steps_per_generation
    delayed = h.config is not None and h.config.rollout.delay_steps > 0
    evidence = [f"rollouts are trained on {number(age)} steps after they were drawn"]
    if drift is not None:
        evidence.append(f"by then the policy had moved by up to {number(drift)} nats a token (k3)")
    return Cause(
        name="stale_rollouts",
        confidence="high" if apart and h.was_hurt else "medium" if apart else "low",
        stage=MASS,
        text="The rollouts are of an older policy than the one that learns from them",
        evidence=(*evidence, *outcome(h)),
        advice="draw rollouts anew at every step",
        change={
            **({"rollout.steps_per_generation": 1} if together > 1 else {}),
            **({"rollout.delay_steps": 0} if delayed or together == 1 else {}),
        },
        source="staleness (age > 2 under the reverse KL; ESS < .5)",
        signal="rollout/drift_k3",
    )
