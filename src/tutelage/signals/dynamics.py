"""Rules that read how a run went, and its symptoms."""

import math
from statistics import fmean

from tutelage.signals import guards
from tutelage.signals.causes import (
    DYNAMICS,
    FOREIGN_MASS,
    SYMPTOM,
    TEACHER_CUT,
    Cause,
    Confidence,
    abilities,
    ability_gap,
    lengths,
    number,
    outcome,
    sure_and_wrong,
    teacher_is_no_better,
)
from tutelage.signals.history import WINDOW, History

STEP_KL = 0.05  # nats a token; reported: more than that a step, all through the run
STEP_KL_PLAINLY = 0.5  # over WINDOW steps in a row
TARGET_STEP_KL = 0.01
REACH, RAISED_STEP_KL, MOST_RAISED = 0.1, 0.001, 100.0
KNOWS_NOTHING, KNOWS_LITTLE = 0.65, 0.8  # AUROC of the sequence reward; reported: < .55
NEAR = 0.01  # nats a token of reverse KL: there is little to learn
FAR = 1.0  # nats a token of reverse KL at the start
REPEATS, REPEATS_MORE = 0.1, 2.0  # share of 4-grams; reported: more than twice the start
LOST_ENTROPY = 0.5  # reported: H_S below half of H_T
DEEP = 3.0  # times the reverse KL of the first half


def learning_rate(h: History) -> Cause | None:
    """Steps are too large: each moves the policy far from the one that drew the rollouts."""
    middle, worst = h.middle("update/kl"), h.worst("update/kl")
    if middle is None or worst is None:
        return None
    plainly = worst > STEP_KL_PLAINLY
    if not plainly and middle <= STEP_KL:
        return None
    moved = worst if plainly else middle
    lr = None if h.config is None else h.config.optimizer.lr
    # KL grows with the square of a small step.
    lower = (
        None if lr is None else float(f"{lr * max(0.01, math.sqrt(TARGET_STEP_KL / moved)):.1g}")
    )
    norm = h.middle("grad_norm")
    clip = None if h.config is None else h.config.optimizer.grad_clip
    when = f"of {WINDOW} steps in a row" if plainly else "of the steps after the first"
    evidence = [f"half {when} moved the policy by more than {number(moved)} nats a token"]
    if lr is not None:
        evidence.append(f"optimizer.lr is {lr:g}")
    if norm is not None and clip is not None:
        evidence.append(
            f"the gradient's norm was {number(norm)} in the middle, clipped at {clip:g}"
        )
    return Cause(
        name="learning_rate",
        confidence="high" if plainly and h.outcome != "improved" else "medium",
        stage=DYNAMICS,
        text="Each step moves the student too far",
        evidence=(*evidence, *outcome(h)),
        advice="lower optimizer.lr, and warm up",
        change={} if lower is None else {"optimizer.lr": lower},
        source="sensitivity to the learning rate (KL a step > .05; NeMo-RL)",
        signal="update/kl",
    )


def small_steps(h: History) -> Cause | None:
    """All steps together cannot have brought the student to its teacher, or not even near."""
    share, moves = reach(h), h.series("update/kl")
    start = h.at_start("kl/reverse")
    if h.goes_on or h.outcome != "flat" or share is None or share >= 1 or start is None:
        return None
    hardly = share < REACH
    lr, middle = None if h.config is None else h.config.optimizer.lr, h.middle("update/kl") or 0.0
    # KL grows with the square of a small step.
    factor = min(MOST_RAISED, math.sqrt(RAISED_STEP_KL / max(middle, 1e-12)))
    evidence = [
        f"{len(moves)} steps moved the policy by {number(share * start)} nats a token at most, and "
        f"its teacher was {number(start)} away",
        f"half of the steps moved it by less than {number(middle)}",
    ]
    if lr is not None:
        evidence.append(f"optimizer.lr is {lr:g}")
    return Cause(
        name="small_steps",
        confidence="low" if not hardly else "medium" if teacher_is_no_better(h) else "high",
        stage=DYNAMICS,
        text="The student hardly moved, so nothing is known of its teacher's advice yet"
        if hardly
        else "All steps together fall short of the way to the teacher",
        evidence=(*evidence, *outcome(h)),
        advice="raise optimizer.lr, or train for more steps",
        change={} if lr is None or factor <= 1 else {"optimizer.lr": float(f"{lr * factor:.1g}")},
        source="the triangle inequality of small steps",
        signal="update/kl",
    )


def reach(h: History) -> float | None:
    """How far all steps together may have moved the policy, of the way to the teacher.

    The square root of a small KL is a length, so steps of `d_i` nats move the policy by no more
    than `(sum sqrt(d_i))^2`, as they do where all go in one direction.
    """
    moves, start = h.series("update/kl"), h.at_start("kl/reverse")
    if len(moves) < WINDOW or start is None or start < NEAR:
        return None
    return sum(math.sqrt(max(0.0, move)) for move in moves) ** 2 / start


def no_new_knowledge(h: History) -> Cause | None:
    """The teacher knows nothing that the student does not."""
    informative = h.at_start("sequence_reward/auroc")
    gap = ability_gap(h)
    cut = (h.at_start("teacher/truncated") or 0.0) > TEACHER_CUT
    weaker = gap is not None and gap[1] < 0 and not cut
    confidence: Confidence
    if weaker:
        confidence = "high"
    elif gap is not None and not cut:
        if not teacher_is_no_better(h) or (informative or 0.0) > KNOWS_LITTLE:
            return None
        confidence = "high" if informative is not None and informative < KNOWS_NOTHING else "medium"
    elif informative is not None and informative < KNOWS_NOTHING:
        confidence = "medium"
    else:
        return None
    mass = h.at_start("overlap/mass_student")
    foreign = mass is not None and mass < FOREIGN_MASS
    if confidence == "high" and (foreign or sure_and_wrong(h) is not None):
        confidence = "medium"  # it is something else than a weak teacher
    if confidence == "high" and h.outcome == "improved":
        confidence = "medium"
    evidence = abilities(h)
    if informative is not None:
        evidence.append(
            f"the chance that it rates a right answer above a wrong one is {number(informative)}"
        )
    return Cause(
        name="no_new_knowledge",
        confidence=confidence,
        stage=DYNAMICS,
        text="The teacher is weaker than the student"
        if weaker
        else "The teacher knows nothing that the student does not know",
        evidence=(*evidence, *outcome(h)),
        advice="take a teacher that was trained on something else or further, and ask tutelage "
        "check first; its size and its score do not tell",
        source="no new knowledge (2604.13016, section 3.2; gap interval includes 0)",
        signal="sequence_reward/auroc",
    )


def thinking_pattern(h: History) -> Cause | None:
    """An able teacher that thinks in another way."""
    mass, divergence = h.at_start("overlap/mass_student"), h.at_start("kl/reverse")
    if mass is None:
        return None
    now = h.last("overlap/mass_student")
    met = h.outcome == "improved" and now is not None and now >= FOREIGN_MASS
    gap = ability_gap(h)
    able = gap is not None and gap[0] > 0
    far = divergence is not None and divergence > FAR
    confidence: Confidence
    if mass < FOREIGN_MASS:
        small = small_steps(h)
        moved = small is None or small.confidence == "low"
        confidence = "high" if able and h.was_hurt and moved else "medium"
        if met or (gap is not None and not able):
            confidence = "low"
    elif able and far and h.outcome == "worse":
        confidence = "medium"
    else:
        return None
    evidence = [f"at the start they share {mass:.0%} of what the student finds likely"]
    if now is not None:
        evidence.append(f"at the end {now:.0%}")
    if divergence is not None:
        evidence.append(f"the reverse KL at the start is {number(divergence)} nats a token")
    return Cause(
        name="thinking_pattern",
        confidence=confidence,
        stage=DYNAMICS,
        text="The teacher is able and thinks in another way, so its advice on the student's "
        "answers is off its own path"
        if able
        else "The teacher finds other tokens likely than the student: it thinks in another way, or "
        "is not the teacher it should be",
        evidence=(*evidence, *abilities(h), *outcome(h)),
        advice="cold-start first (tutelage rescue), or train on the teacher's own answers",
        change={
            "rollout.student_share": 0.0,
            "objective": {"type": "full", "divergence": {"type": "forward_kl"}},
        },
        source="thinking-pattern gap (2604.13016, sections 3.1 and 5.1)",
        signal="overlap/mass_student",
    )


def unreliable_depth(h: History) -> Cause | None:
    """Late in the answer the teacher disagrees far more than early, and is unsure itself."""
    early, late = _halves(h.bins("kl/reverse", begin=False))
    unsure_early, unsure_late = _halves(h.bins("entropy/teacher", begin=False))
    if early is None or late is None or unsure_early is None or unsure_late is None:
        return None
    if late < DEEP * early or unsure_late < 2 * unsure_early or not h.was_hurt:
        return None
    most = None if h.config is None else h.config.rollout.max_new_tokens
    return Cause(
        name="unreliable_depth",
        confidence="low",
        stage=DYNAMICS,
        text="Deep in the answer the teacher's advice is unreliable",
        evidence=(
            f"at the end the reverse KL is {number(late)} nats in the last quarter of the answers, "
            f"{number(early)} in the first half; the teacher's entropy {number(unsure_late)} and "
            f"{number(unsure_early)}",
        ),
        advice="shorten rollout.max_new_tokens to where the teacher still helps (tutelage check "
        "says how deep), or weigh early tokens more",
        change={} if most is None else {"objective.weight": {"type": "position"}},
        source="unreliable teacher on the student's prefix (2604.13016, section 6.1)",
        signal="kl/reverse",
    )


def length_collapse(h: History) -> Cause | None:
    """Answers became much shorter, where agreement is easy."""
    signal = guards.length(h.steps, 2.0, WINDOW)
    if signal is None or signal.name != "length_collapse":
        return None
    fell = (h.last("kl/reverse") or math.inf) < (h.first("kl/reverse") or 0.0)
    return Cause(
        name="length_collapse",
        confidence="high" if fell and h.was_hurt else "medium",
        stage=SYMPTOM,
        text="The student learned to stop early, where agreeing with the teacher is easy",
        evidence=(signal.evidence, *outcome(h)),
        advice=signal.advice,
        change={"objective": {"type": "top_k"}},
        source="early-stop length collapse with falling KL (research on the lab pair)",
        signal="rollout/length",
    )


def length_inflation(h: History) -> Cause | None:
    """Answers became much longer, or stopped ending."""
    longer = guards.length(h.steps, 2.0, WINDOW)
    cut = guards.truncation(h.steps, 0.5, WINDOW)
    found = [s for s in (longer, cut) if s is not None and s.name != "length_collapse"]
    if not found:
        return None
    reward = h.last("stop/reward")
    evidence = [signal.evidence for signal in found]
    if reward is not None:
        evidence.append(f"the reward of stopping is {number(reward)} nats at the end")
    return Cause(
        name="length_inflation",
        confidence="medium",
        stage=SYMPTOM,
        text="The student's answers grow",
        evidence=(*evidence, *lengths(h), *outcome(h)),
        advice="where the reward of stopping is far below 0 the sides disagree on how to end; "
        "where answers repeat, add objective.brake; else lower rollout.max_new_tokens",
        change={"objective.brake": {"coefficient": 0.1}},
        source="length inflation (StableOPD; truncation + 10 points in 20 steps)",
        signal="rollout/length",
    )


def repetition(h: History) -> Cause | None:
    """Answers repeat themselves more and more."""
    first, last = h.first("rollout/repetition"), h.last("rollout/repetition")
    if first is None or last is None or last < REPEATS or last < REPEATS_MORE * first:
        return None
    return Cause(
        name="repetition",
        confidence="high" if h.was_hurt and last > 2 * REPEATS else "medium",
        stage=SYMPTOM,
        text="The student repeats itself",
        evidence=(f"repeated 4-grams went from {first:.1%} to {last:.1%}", *outcome(h)),
        advice="hold the student back with objective.brake, and keep answers that were cut out of "
        "the update by a shorter rollout.max_new_tokens",
        change={"objective.brake": {"coefficient": 0.1}},
        source="repetition collapse (more than twice the start)",
        signal="rollout/repetition",
    )


def entropy_collapse(h: History) -> Cause | None:
    """The student is far surer than the teacher, and no better."""
    first, own, theirs = (
        h.first("entropy/student"),
        h.last("entropy/student"),
        h.last("entropy/teacher"),
    )
    if first is None or own is None or theirs is None or not h.was_hurt:
        return None
    if own >= LOST_ENTROPY * theirs or own >= LOST_ENTROPY * first:
        return None
    return Cause(
        name="entropy_collapse",
        confidence="medium",
        stage=SYMPTOM,
        text="The student became far surer than the teacher, without becoming better",
        evidence=(
            f"its entropy went from {number(first)} to {number(own)} nats a token, the teacher's "
            f"is {number(theirs)}",
            *outcome(h),
        ),
        advice="add a share of the forward KL where the teacher is unsure (divergence mix)",
        change={"objective.divergence": {"type": "mix", "ramp": {}}},
        source="entropy collapse (H_S below half of H_T)",
        signal="entropy/student",
    )


def non_finite(h: History) -> Cause | None:
    """Steps were not finite."""
    limit = 3 if h.config is None else h.config.guards.non_finite_limit
    bad = [record["step"] for record in h.steps if not record.get("applied", True)]
    if not bad:
        return None
    lr = None if h.config is None else h.config.optimizer.lr
    return Cause(
        name="non_finite",
        confidence="high" if guards.non_finite(h.steps, limit) else "medium",
        stage=SYMPTOM,
        text="Losses or gradients were not finite",
        evidence=(f"{len(bad)} of {len(h.steps)} steps were not applied, the first {bad[0]}",),
        advice="lower optimizer.lr or optimizer.grad_clip, and check both models for NaN weights",
        change={} if lr is None else {"optimizer.lr": lr / 10},
        source="guards",
        signal="grad_norm",
    )


def _halves(bins: list[float]) -> tuple[float | None, float | None]:
    """Means over the first half and the last quarter of a series by place."""
    known = [value for value in bins if not math.isnan(value)]
    if len(known) < 8:
        return None, None
    return fmean(known[: len(known) // 2]), fmean(known[-(len(known) // 4) :])
