"""The settings of the objective: combinations that cannot be right cannot be written."""

from typing import Annotated, Literal

from pydantic import (
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from tutelage.config.base import Section, tagged
from tutelage.config.models import LocalModelConfig, Reference


class ReverseKL(Section):
    """KL(student || teacher): the student keeps to what the teacher finds likely."""

    type: Literal["reverse_kl"] = "reverse_kl"


class ForwardKL(Section):
    """KL(teacher || student): the student covers all that the teacher finds likely."""

    type: Literal["forward_kl"] = "forward_kl"


class JSD(Section):
    """beta KL(q || m) + (1 - beta) KL(p || m), m = beta q + (1 - beta) p."""

    type: Literal["jsd"] = "jsd"
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Weight of the teacher in the mixture; the ends are reverse_kl and forward_kl."""


class Skew(Section):
    """KL against a mixture that keeps a part alpha of the first argument: bounded log-ratios."""

    type: Literal["skew"] = "skew"
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the distribution itself in the mixture; the log-ratio never exceeds -log alpha."""
    direction: Literal["reverse", "forward"] = "reverse"
    """reverse: KL(p || alpha p + (1 - alpha) q); forward: KL(q || alpha q + (1 - alpha) p)."""


class Power(Section):
    """The density-power divergence with reward q^alpha - p^alpha."""

    type: Literal["power"] = "power"
    alpha: PositiveFloat = 1.0
    """1 is half the squared distance; divided by alpha it tends to the reverse KL at 0."""


class EntropyRamp(Section):
    """A share that rises with the teacher's entropy."""

    low: NonNegativeFloat = 0.0
    """Entropy in nats up to which the share is 0."""
    high: PositiveFloat = 1.0
    """Entropy in nats from which the share is full."""

    @model_validator(mode="after")
    def _rises(self) -> "EntropyRamp":
        if self.high <= self.low:
            raise ValueError(f"high ({self.high}) must exceed low ({self.low})")
        return self


class Mix(Section):
    """(1 - f) reverse KL + f forward KL."""

    type: Literal["mix"] = "mix"
    forward: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share f of the forward KL."""
    ramp: EntropyRamp | None = None
    """None: f everywhere. Else f grows from 0 with the teacher's entropy."""


class Bucket(Section):
    """All other tokens become one outcome: never above the full divergence, never negative."""

    type: Literal["bucket"] = "bucket"


class Renormalise(Section):
    """Both sides renormalised on the support (equation 5): blind to mass leaving it."""

    type: Literal["renormalise"] = "renormalise"


class Drop(Section):
    """The full gradient with the terms outside the support left out."""

    type: Literal["drop"] = "drop"


class ReferenceCode(Section):
    """What the paper's released code optimises: weights on the support, full log-ratios."""

    type: Literal["reference_code"] = "reference_code"
    weight: Literal["student", "teacher", "uniform"] = "student"
    """Whose probabilities weigh the log-ratios."""
    normalise: bool | None = None
    """Weights sum to one on the support. None does as the code: always, but for
    symmetric_difference."""


Divergence = Annotated[
    Annotated[ReverseKL | ForwardKL | JSD | Skew | Power | Mix, Discriminator("type")],
    tagged("reverse_kl"),
]
Tail = Annotated[
    Annotated[Bucket | Renormalise | Drop | ReferenceCode, Discriminator("type")],
    tagged("bucket"),
]


# token weights


class UniformWeight(Section):
    """Every token counts the same."""

    type: Literal["uniform"] = "uniform"


class _NormalisedWeight(Section):
    normalise: bool = True
    """Scale the weights to mean 1 over the step's tokens."""


class ClipWeight(Section):
    """No token counts more than `most`: style words can hold many times the loss of others.

    The gradient of a token above it is scaled down, not cut off (2601.18734).
    """

    type: Literal["clip"] = "clip"
    most: PositiveFloat = 1.0
    """Nats of a token's loss that count at most."""


class PositionWeight(_NormalisedWeight):
    """Linear in the place of the token in its rollout, between 1 - slope and 1 + slope."""

    type: Literal["position"] = "position"
    direction: Literal["up", "down"] = "down"
    """down favours the beginning."""
    slope: Annotated[float, Field(gt=0, le=1)] = 0.5
    """1 gives one end the weight 0."""


class TeacherEntropyWeight(_NormalisedWeight):
    """By the teacher's entropy H: H itself, or exp(-H)."""

    type: Literal["teacher_entropy"] = "teacher_entropy"
    favour: Literal["high", "low"] = "low"
    """Which states count more."""


class TipWeight(_NormalisedWeight):
    """Tokens at which the student is unsure, or sure and far from the teacher (2604.14084)."""

    type: Literal["tip"] = "tip"
    unsure: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the step's tokens kept for the student's entropy."""
    far: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the rest kept for the reverse KL."""


class TeachabilityWeight(_NormalisedWeight):
    """Teacher's corrective mass inside the student's top-k: sum of max(q - p, 0) (2605.26844)."""

    type: Literal["teachability"] = "teachability"
    k: PositiveInt = 16
    """Size of the student's top-k set."""


class CorrectnessWeight(_NormalisedWeight):
    """By the verdict on the rollout; unknown counts 1. Needs a verifier."""

    type: Literal["correctness"] = "correctness"
    right: NonNegativeFloat = 1.0
    """Weight of tokens of right rollouts."""
    wrong: NonNegativeFloat = 1.0
    """Weight of tokens of wrong rollouts."""


class ReliabilityWeight(_NormalisedWeight):
    """A measured table: relative position x teacher entropy -> weight."""

    type: Literal["reliability"] = "reliability"
    table: str
    """JSON file with `positions` and `entropies` (inner bin edges) and `weights` (rows by
    position), as `align` writes it."""
    gate: bool = False
    """Train on the tokens of cells above 0 alike and on no others."""


TokenWeight = Annotated[
    Annotated[
        UniformWeight
        | ClipWeight
        | PositionWeight
        | TeacherEntropyWeight
        | TipWeight
        | TeachabilityWeight
        | CorrectnessWeight
        | ReliabilityWeight,
        Discriminator("type"),
    ],
    tagged(),
]


# prompt weights


class UniformPrompt(Section):
    """Every prompt counts the same."""

    type: Literal["uniform"] = "uniform"


class PassRatePrompt(Section):
    """p (1 - p) of the student's pass rate in the group (2603.11178); needs group_size >= 2."""

    type: Literal["pass_rate"] = "pass_rate"


class TeacherGatePrompt(Section):
    """Prompts that the teacher solves count, the others do not (2609.02998).

    The gate decides nothing about a prompt on which none of the teacher's answers can be judged: it
    counts 1, as without a gate, and the others have mean 1 among themselves.
    """

    type: Literal["teacher_gate"] = "teacher_gate"
    samples: PositiveInt = 1
    """Teacher samples of each prompt."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Pass rate from which the gate is open."""


PromptWeight = Annotated[
    Annotated[UniformPrompt | PassRatePrompt | TeacherGatePrompt, Discriminator("type")], tagged()
]


# targets


class TeacherTarget(Section):
    """The teacher itself."""

    type: Literal["teacher"] = "teacher"


class ExtrapolatedTarget(Section):
    """log r + strength log(q / r): beyond the teacher, as seen from a reference (2602.12125)."""

    type: Literal["extrapolated"] = "extrapolated"
    strength: PositiveFloat = 1.25
    """1 is the teacher, less lies between reference and teacher."""
    reference: Reference = "initial"
    """The model r."""


class ShiftTarget(Section):
    """log p0 + log(q / q0): only what training changed in the teacher (2609.10154)."""

    type: Literal["shift"] = "shift"
    teacher_base: LocalModelConfig
    """The teacher before its training, q0."""
    student_base: Reference = "initial"
    """The model p0 that the shift is added to."""


class ArithmeticTarget(Section):
    """share q + (1 - share) p: a target between student and teacher, without gradient."""

    type: Literal["arithmetic"] = "arithmetic"
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the teacher."""


Target = Annotated[
    Annotated[
        TeacherTarget | ExtrapolatedTarget | ShiftTarget | ArithmeticTarget, Discriminator("type")
    ],
    tagged(),
]


class Brake(Section):
    """KL(student || reference): holds the student back from collapse."""

    coefficient: PositiveFloat
    """Weight of the term."""
    reference: Reference = "initial"
    """The model it is held to."""


# verifiable rewards


class ConstantSchedule(Section):
    """The teacher stays."""

    type: Literal["constant"] = "constant"


class AnnealSchedule(Section):
    """The teacher's term falls linearly to 0 between two steps."""

    type: Literal["anneal"] = "anneal"
    start: NonNegativeInt = 0
    """Step from which it falls."""
    end: PositiveInt
    """Step from which it is 0."""

    @model_validator(mode="after")
    def _falls(self) -> "AnnealSchedule":
        if self.end <= self.start:
            raise ValueError(f"end ({self.end}) must exceed start ({self.start})")
        return self


class RetireSchedule(Section):
    """The teacher is dropped for good once the student is near it and comes no nearer."""

    type: Literal["retire"] = "retire"
    fraction: Annotated[float, Field(gt=0)] = 0.9
    """Share of the teacher's held-out accuracy that the student must have reached."""
    patience: PositiveInt = 2
    """Evaluations in a row in which the reverse KL did not fall."""


Schedule = Annotated[
    Annotated[ConstantSchedule | AnnealSchedule | RetireSchedule, Discriminator("type")], tagged()
]


class RewardMix(Section):
    """A verifiable reward beside the teacher: group-normalised advantages (GRPO)."""

    coefficient: PositiveFloat = 1.0
    """Weight of the reward's term."""
    schedule: Schedule = ConstantSchedule()
    """What becomes of the teacher's term."""


class _ObjectiveBase(Section):
    weight: TokenWeight = UniformWeight()
    """How much each token counts."""
    prompt_weight: PromptWeight = UniformPrompt()
    """How much each prompt counts."""
    target: Target = TeacherTarget()
    """What the student moves towards."""
    brake: Brake | None = None
    """Optional pull back to a reference."""
    reward: RewardMix | None = None
    """Optional verifiable reward; needs a verifier and group_size >= 2."""
    return_to_go: Annotated[float, Field(gt=0, le=1)] | None = None
    """Discount of the divergence still to come, credited to the sampled token; None leaves it
    out, as published objectives do."""


# estimators


class NoBaseline(Section):
    """The reward as it is."""

    type: Literal["none"] = "none"


class KLBaseline(Section):
    """The state's expected reward, -KL(p || q) for the reverse KL (2605.07865)."""

    type: Literal["kl"] = "kl"
    k: PositiveInt | None = None
    """None: over the whole vocabulary. Else from the student's top-k alone."""


class BatchMeanBaseline(Section):
    """The mean reward of the step's other tokens."""

    type: Literal["batch_mean"] = "batch_mean"


Baseline = Annotated[
    Annotated[NoBaseline | KLBaseline | BatchMeanBaseline, Discriminator("type")], tagged()
]


class Sampled(_ObjectiveBase):
    """The sampled token alone, as a policy gradient: no extra cost, most noise."""

    type: Literal["sampled"] = "sampled"
    divergence: Divergence = ReverseKL()
    bound: PositiveFloat | None = None
    """Largest size of the log-ratio in the reward, in nats; leaves the family of divergences."""
    baseline: Baseline = NoBaseline()
    """Subtracted from the reward; less noise, same expected gradient."""


class TopK(_ObjectiveBase):
    """A set of likely tokens at every state."""

    type: Literal["top_k"] = "top_k"
    divergence: Divergence = ReverseKL()
    support: Literal["student", "teacher", "union", "intersection", "symmetric_difference"] = (
        "student"
    )
    """Whose most likely tokens are compared."""
    k: PositiveInt = 16
    """How many of each side; at most the vocabulary."""
    tail: Tail = Bucket()
    """What becomes of the tokens outside the support."""

    @model_validator(mode="after")
    def _combination_exists(self) -> "TopK":
        if isinstance(self.tail, Renormalise) and self.k < 2:
            raise ValueError(
                "k: 1 with tail: renormalise gives every distribution the value 0 and no "
                "gradient; use k >= 2, or tail: bucket"
            )
        if isinstance(self.tail, ReferenceCode) and not isinstance(self.divergence, ReverseKL):
            raise ValueError(
                f"tail: reference_code is defined for reverse_kl alone, not "
                f"{self.divergence.type}; use tail: bucket"
            )
        return self


class Full(_ObjectiveBase):
    """The exact divergence over the whole vocabulary."""

    type: Literal["full"] = "full"
    divergence: Divergence = ReverseKL()


Objective = Annotated[Annotated[Sampled | TopK | Full, Discriminator("type")], tagged("top_k")]


def reference_models(objective: Objective) -> dict[str, Reference]:
    """The models an objective needs besides student and teacher, by the name of their setting."""
    needed: dict[str, Reference] = {}
    match objective.target:
        case ExtrapolatedTarget(reference=reference):
            needed["target.reference"] = reference
        case ShiftTarget(teacher_base=teacher_base, student_base=student_base):
            needed |= {"target.teacher_base": teacher_base, "target.student_base": student_base}
        case _:
            pass
    if objective.brake is not None:
        needed["brake"] = objective.brake.reference
    return needed


ESTIMATORS_THAT_DO_NOT_DISTIL = {
    "k1": (
        "log p - log q back-propagated has the expected gradient E_p grad log p = 0: the teacher "
        "drops out. Use `sampled`, whose reward is -k1, or watch kl/k1"
    ),
    "k2": (
        "(log p - log q)^2 / 2 back-propagated is `sampled` with reverse_kl and no baseline; "
        "write that, or watch kl/k2"
    ),
    "k3": (
        "q/p - 1 - log(q/p) back-propagated on student samples has the expected gradient of the "
        "forward KL. Use `sampled` with divergence reverse_kl or forward_kl, or watch kl/k3"
    ),
    "top_k_advantage": (
        "a top-k KL summed to one number and used as the advantage of the sampled token does not "
        "depend on that token, so E_p A grad log p = 0. Use `top_k`"
    ),
    "clamped_top_k": (
        "a truncated KL clamped at 0 loses its gradient wherever it is negative. Use `top_k` with "
        "tail: bucket, which is never negative"
    ),
}
"""Names people try, and why their gradient is not the one they want."""
