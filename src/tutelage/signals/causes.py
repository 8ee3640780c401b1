"""Causes: what a rule makes of a run, and the rules that read settings and the first evaluation.

A rule is a pure function of a `History`. It says nothing where its signal was not recorded.
Thresholds without a source were set on the development half of benchmarks/explain_faults.py.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tutelage.config import (
    Bucket,
    Config,
    Drop,
    NoBaseline,
    ReferenceCode,
    Renormalise,
    Sampled,
    TopK,
)
from tutelage.signals.guards import Signal
from tutelage.signals.history import History

Confidence = Literal["high", "medium", "low"]
CONFIDENCES: tuple[Confidence, ...] = ("high", "medium", "low")
"""high: a signal that only this cause gives was measured in this run. medium: the signals fit, and
another cause could give them too, or no harm is seen. low: a setting that is known to do harm."""

STATIC, SOUNDNESS, MASS, DYNAMICS, SYMPTOM = range(5)
STAGES = ("static", "soundness", "mass", "dynamics", "symptom")
"""The order of reasoning: what is free to know comes first, and symptoms last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Something that explains what a run did."""

    name: str
    """Which rule."""
    confidence: Confidence
    """How sure; see `CONFIDENCES`."""
    stage: int
    """Its place in the order of reasoning, an index of `STAGES`."""
    text: str
    """What it is, in a sentence."""
    evidence: tuple[str, ...]
    """The numbers of this run behind it."""
    advice: str
    """What to change."""
    change: Mapping[str, Any] = field(default_factory=dict)
    """The settings that do so, by their dotted names; empty where it is no setting."""
    source: str
    """Where the rule comes from."""
    signal: str | None = None
    """The metric that shows it, for a replay."""

    def as_warning(self) -> Signal:
        """The same while a run goes on."""
        return Signal(
            name=self.name,
            severity="warning",
            evidence=f"{self.text.lower()[:1]}{self.text[1:]}: {'; '.join(self.evidence)}",
            advice=self.advice,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        told = {
            "name": self.name,
            "confidence": self.confidence,
            "stage": STAGES[self.stage],
            "text": self.text,
            "evidence": list(self.evidence),
            "advice": self.advice,
            "change": dict(self.change),
            "source": self.source,
            "signal": self.signal,
        }
        return {key: value for key, value in told.items() if value is not None}


NEVER_STOPS = 1e-3  # reported: a teacher that stops elsewhere gives the student's stop id less
STOPS = 0.1  # of the student, where it did stop
STOP_REWARD = -0.5  # nats; -0.69 is a teacher that stops there half of the time
NOTHING_TO_LEARN = 1e-3  # nats a token
FIRST_TOKEN = 3.0  # times the body's reverse KL
SOLVES_NOTHING = 0.1
READS_NOTHING = 0.01  # nats, of one token's scores over its contexts
SURE_AND_WRONG = 0.25
TEACHER_CUT = 0.3  # share of the teacher's answers cut, from which its accuracy is not its own
TRUNCATED_MUCH, TRUNCATED_SOME = 0.5, 0.2
OUTSIDE_TEACHER, OUTSIDE_STUDENT = 0.9, 0.02  # reported: T(K) < .9; S(K) falls by 2 points
LONG_TAIL, REWARD_P99 = -5.0, 2.0  # nats; reported: p99 > 2 precedes collapse
OLD = 2.0  # reported: steps of age from which stale rollouts hurt the reverse KL
DRIFT = 1e-3  # reported: nats a token between engines


def number(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}"


# --- static --------------------------------------------------------------------------------------


def stop_ids(h: History) -> Cause | None:
    """The sides stop at different ids, or the teacher would go on where the student ends."""
    noted = h.noted.get("stop_ids_differ")
    reward, theirs, own = (h.at_start(f"stop/{key}") for key in ("reward", "teacher", "student"))
    loses = reward is not None and reward < STOP_REWARD
    body = h.at_start("reward/mean")
    # Without differing ids a teacher of another pattern loses nats everywhere, not at the end.
    only_there = loses and body is not None and reward is not None and reward < 3 * body
    if noted is None and not only_there:
        return None
    evidence = [noted] if noted else []
    if reward is not None:
        evidence.append(
            f"the reward of stopping where the student stops is {number(reward)} nats at the start"
        )
    if theirs is not None and own is not None:
        evidence.append(
            f"there the student gives its stop ids {number(own)}, the teacher {number(theirs)}"
        )
    never = theirs is not None and own is not None and own >= STOPS and theirs < NEVER_STOPS
    confidence: Confidence = "low"
    if noted and loses:
        confidence = "high"
    elif only_there:
        confidence = "high" if never else "medium"
    return Cause(
        name="stop_ids",
        confidence=confidence,
        stage=STATIC,
        text="Student and teacher end their answers with different tokens, so the student is "
        "taught not to stop",
        evidence=(*evidence, *_lengths(h)),
        advice="give both the same eos_token_id in generation_config.json, config.json and "
        "tokenizer, or train the student first to end as the teacher does",
        source="EOS disagreement (StableOPD; ms-swift #9526)",
        signal="stop/reward",
    )


def template(h: History) -> Cause | None:
    """The teacher reads another prompt than it should."""
    if h.config is None:
        return None
    teacher = h.config.teacher
    foreign = teacher.chat_template not in (None, "own")
    noted = h.noted.get("templates_differ")
    own = teacher.own_prompt
    if not (own or noted):
        return None
    weak = teacher_is_no_better(h)
    ratio = first_token_ratio(h)
    early = ratio is not None and ratio > FIRST_TOKEN
    evidence = [noted] if noted else []
    if foreign:
        evidence.append(f"teacher.chat_template is {teacher.chat_template}, not its own")
    if "rendered" in h.noted:
        evidence.append(h.noted["rendered"])
    evidence += _abilities(h)
    if ratio is not None:
        evidence.append(f"the first token's reverse KL is {number(ratio)} times the others'")
    suspicious = foreign or noted is not None
    confidence: Confidence = "low"
    if weak and suspicious:
        confidence = "high"
    elif weak or (early and suspicious):
        confidence = "medium"
    if confidence == "low" and not suspicious:
        return None  # a prompt of its own, on purpose, that it reads well
    return Cause(
        name="template",
        confidence=confidence,
        stage=STATIC,
        text="The teacher reads a prompt in a form it was not trained on",
        evidence=tuple(evidence),
        advice="let the teacher read its own template, and see both with tutelage preview",
        change={"teacher.chat_template": "own"},
        source="template mismatch (a published OPSD run; tinker-cookbook #796)",
        signal="kl/reverse",
    )


def precision(h: History) -> Cause | None:
    """The teacher's weights are rounded more coarsely than the student's."""
    noted = h.noted.get("precisions_differ")
    if noted is None or h.config is None:
        return None
    return Cause(
        name="precision",
        confidence="low",
        stage=STATIC,
        text="The teacher's weights are rounded more coarsely than the student's",
        evidence=(noted, *_outcome(h)),
        advice="load the teacher in the student's precision",
        change={"teacher.dtype": h.config.student.dtype},
        source="engine and precision gap (bfloat16 ties; 2604.13016 code)",
        signal="kl/reverse",
    )


# --- soundness -----------------------------------------------------------------------------------


def same_model(h: History) -> Cause | None:
    """The teacher says what the student says: nothing to learn."""
    start = h.at_start("kl/reverse")
    config = h.config
    same = (
        config is not None
        and config.teacher.path == config.student.path
        and not config.teacher.own_prompt
    )
    if start is None or not (start < NOTHING_TO_LEARN or same):
        return None
    return Cause(
        name="same_model",
        confidence="high" if start < NOTHING_TO_LEARN else "medium",
        stage=SOUNDNESS,
        text="The teacher says what the student says: there is nothing to learn",
        evidence=(
            f"the reverse KL at the start is {number(start)} nats a token",
            *(["student.path and teacher.path are one folder"] if same else []),
            *_outcome(h),
        ),
        advice="name another model in teacher.path, or let this one read more than the student "
        "(teacher.user_prompt with the answer)",
        source="same-model zero test (the identity S = T)",
        signal="kl/reverse",
    )


def broken_teacher(h: History) -> Cause | None:
    """What answers in the teacher's name is not the teacher."""
    evidence: list[str] = []
    confidence: Confidence | None = None
    spread = h.spread_of_same_tokens()
    if spread is not None and spread[0] < READS_NOTHING < spread[1]:
        confidence = "high"
        evidence.append(
            f"its log-probability of a token varies by {number(spread[0])} nats over contexts, the "
            f"student's by {number(spread[1])}: it does not read what it scores"
        )
    theirs, own = h.interval("teacher/accuracy", h.begin), h.interval("accuracy", h.begin)
    truncated = h.at_start("teacher/truncated") or 0.0
    mass = h.at_start("overlap/mass_student")
    foreign = mass is not None and mass < 0.8
    if theirs and own and theirs[1] < min(SOLVES_NOTHING, own[0]):
        if truncated < TEACHER_CUT or foreign:
            confidence = "high"
        evidence += _abilities(h)
    elif teacher_is_no_better(h) and (claimed := sure_and_wrong(h)) is not None:
        confidence = confidence or "medium"
        evidence += _abilities(h)
        evidence.append(
            f"its entropy says that it sees one answer alone in {claimed:.0%} of the questions, so "
            "it is sure and wrong"
        )
    if confidence is None:
        return None
    served = h.config is not None and h.config.teacher.server is not None
    if h.config is not None and h.config.teacher.own_prompt and spread is None:
        confidence = "medium"  # a template explains as much
    return Cause(
        name="broken_teacher",
        confidence=confidence,
        stage=SOUNDNESS,
        text="What scores in the teacher's name is not the teacher it should be",
        evidence=tuple(evidence),
        advice=(
            "ask the server which model it serves (tutelage doctor -c RUN/config.yaml), and score "
            "a right answer by hand"
            if served
            else "check that teacher.path holds the weights and the tokenizer of one model "
            "(tutelage eval teacher.path)"
        ),
        source="teacher determinism and identity (SkyRL #2256; NeMo-RL #3272)",
        signal="sequence_reward/auroc",
    )


def engine_mismatch(h: History) -> Cause | None:
    """The sampler's log-probabilities are not the trainer's, of the same weights."""
    now = h.middle("rollout/drift_k3", 0)
    age = h.middle("rollout/age", 0) or 0.0
    if now is None or now <= DRIFT or age > 0:
        return None
    return Cause(
        name="engine_mismatch",
        confidence="high" if now > 10 * DRIFT else "medium",
        stage=SOUNDNESS,
        text="The student that samples is not the student that trains",
        evidence=(f"their log-probabilities differ by a k3 of {number(now)} nats a token",),
        advice="run the student's server in float32 with its default --logprobs-mode, and check "
        "that it takes the synced weights",
        source="engine mismatch (k3 > 1e-3; vLLM and verl rollout correction)",
        signal="rollout/drift_k3",
    )


# --- mass and tails ------------------------------------------------------------------------------


def response_limit(h: History) -> Cause | None:
    """Answers were cut from the beginning."""
    cut = h.at_start("rollout/truncated")
    if cut is None or cut < TRUNCATED_SOME:
        return None
    most = h.config.rollout.max_new_tokens if h.config is not None else None
    theirs = h.at_start("teacher/truncated")
    return Cause(
        name="response_limit",
        confidence="high" if cut >= TRUNCATED_MUCH or h.was_hurt else "medium",
        stage=MASS,
        text="Answers are cut before they end, so what they are judged and taught by is missing",
        evidence=(
            f"{cut:.0%} of the student's rollouts were cut at the start"
            + (f", by a limit of {most} tokens" if most else ""),
            *([f"so were {theirs:.0%} of the teacher's own"] if theirs is not None else []),
            *_outcome(h),
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
        evidence=(*evidence, *_outcome(h)),
        advice="give the rest a bucket, and compare 16 tokens or more",
        change={"objective.tail": {"type": "bucket"}, "objective.k": max(16, objective.k)},
        source="top-k mass leak (verl #7856; 2604.13016, equation 5)",
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
        evidence=(*evidence, *_outcome(h)),
        advice="compare the likeliest tokens (objective top_k with a bucket), or bound the reward",
        change={"objective": {"type": "top_k"}},
        source="reward-tail blow-up (p99 > 2 precedes collapse)",
        signal="grad_norm",
    )


def stale_rollouts(h: History) -> Cause | None:
    """Rollouts are older than the policy that learns from them."""
    age = h.last("rollout/age")
    if age is None or age <= OLD:
        return None
    drift = h.last("rollout/drift_k3")
    apart = drift is not None and drift > DRIFT
    evidence = [f"rollouts are trained on {number(age)} steps after they were drawn"]
    if drift is not None:
        evidence.append(f"by then the policy has moved by a k3 of {number(drift)} nats a token")
    return Cause(
        name="stale_rollouts",
        confidence="high" if apart and h.was_hurt else "medium" if apart else "low",
        stage=MASS,
        text="The rollouts are of an older policy than the one that learns from them",
        evidence=(*evidence, *_outcome(h)),
        advice="draw rollouts anew at every step",
        change={"rollout.delay_steps": 0},
        source="staleness (age > 2 under the reverse KL; ESS < .5)",
        signal="rollout/drift_k3",
    )


# --- what rules share ----------------------------------------------------------------------------


def teacher_is_no_better(h: History) -> bool:
    """Whether the teacher, as it reads the prompts here, is not plainly above the student."""
    theirs, own = h.interval("teacher/accuracy", h.begin), h.interval("accuracy", h.begin)
    return theirs is not None and own is not None and theirs[0] <= own[1]


def claimed_accuracy(h: History) -> float | None:
    """Chance that the teacher gives its likeliest answer, as its entropy has it.

    exp(-H L) of its entropy a token and its answers' length. Long answers make it 0, which says
    nothing.
    """
    entropy, length = h.at_start("entropy/teacher"), h.at_start("teacher/length")
    return None if entropy is None or length is None else math.exp(-entropy * length)


def sure_and_wrong(h: History) -> float | None:
    """What the teacher claims, where it is far above what it solves."""
    claimed, theirs = claimed_accuracy(h), h.interval("teacher/accuracy", h.begin)
    if claimed is None or theirs is None or claimed <= theirs[1] + SURE_AND_WRONG:
        return None
    return claimed


def first_token_ratio(h: History) -> float | None:
    """Reverse KL of the first place in the completion over the mean of the others, at the start."""
    bins = [value for value in h.bins("kl/reverse") if not math.isnan(value)]
    if len(bins) < 4:
        return None
    rest = sum(bins[1:]) / len(bins[1:])
    return bins[0] / rest if rest > 0 else None


def _abilities(h: History) -> list[str]:
    record = h.begin
    if record is None or "teacher/accuracy" not in record or "accuracy" not in record:
        return []
    return [
        f"before training the teacher solves {record['teacher/accuracy']:.0%} of the questions as "
        f"it reads them here, the student {record['accuracy']:.0%}"
    ]


def _lengths(h: History) -> list[str]:
    first, last = h.first("rollout/length"), h.last("rollout/length")
    if first is None or last is None or abs(last - first) < 0.1 * first:
        return []
    return [f"the student's answers went from {first:.1f} to {last:.1f} tokens"]


def _outcome(h: History) -> list[str]:
    before, after = h.begin, h.end
    if before is None or after is None or "accuracy" not in before or "accuracy" not in after:
        return []
    return [f"accuracy went from {before['accuracy']:.2f} to {after['accuracy']:.2f}"]


def settings(config: Config | None, name: str) -> Any:
    """A setting by its dotted name; None where the settings are not known."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part, None)
    return value
