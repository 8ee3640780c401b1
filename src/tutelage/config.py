"""The settings of a run: YAML and flags in, one validated tree out.

Defaults are the recommended values. A key that does not exist, a value out of
range or a combination that cannot be right is a `UsageError` naming the field.
"""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from tutelage.errors import UsageError, did_you_mean


class Section(BaseModel):
    """A frozen part of the settings that refuses unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


S = TypeVar("S", bound=Section)


def _tagged(default: str | None = None) -> BeforeValidator:
    """`jsd` is short for `{type: jsd}`, and a mapping without a type has the default one."""

    def complete(value: object) -> object:
        if isinstance(value, str):
            return {"type": value}
        if default is not None and isinstance(value, dict) and "type" not in value:
            return {"type": default, **value}
        return value

    return BeforeValidator(complete)


# --- the objective ---------------------------------------------------------------------------


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
    _tagged("reverse_kl"),
]
Tail = Annotated[
    Annotated[Bucket | Renormalise | Drop | ReferenceCode, Discriminator("type")],
    _tagged("bucket"),
]


class ModelConfig(Section):
    """A model and how it is loaded."""

    path: str
    """Directory with config.json, tokenizer and safetensors weights."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the weights."""
    device: str = "auto"
    """cpu, cuda, cuda:1; auto takes a GPU where there is one."""
    template: dict[str, Any] = {}
    """Arguments of the chat template, such as `enable_thinking: false`."""


Reference = Literal["initial"] | ModelConfig
"""`initial` is the student as it was before the run."""


# token weights


class UniformWeight(Section):
    """Every token counts the same."""

    type: Literal["uniform"] = "uniform"


class _NormalisedWeight(Section):
    normalise: bool = True
    """Scale the weights to mean 1 over the step's tokens."""


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
    position)."""


TokenWeight = Annotated[
    Annotated[
        UniformWeight
        | PositionWeight
        | TeacherEntropyWeight
        | TipWeight
        | TeachabilityWeight
        | CorrectnessWeight
        | ReliabilityWeight,
        Discriminator("type"),
    ],
    _tagged(),
]


# prompt weights


class UniformPrompt(Section):
    """Every prompt counts the same."""

    type: Literal["uniform"] = "uniform"


class PassRatePrompt(Section):
    """p (1 - p) of the student's pass rate in the group (2603.11178); needs group_size >= 2."""

    type: Literal["pass_rate"] = "pass_rate"


class TeacherGatePrompt(Section):
    """Prompts that the teacher solves count, the others do not (2609.02998)."""

    type: Literal["teacher_gate"] = "teacher_gate"
    samples: PositiveInt = 1
    """Teacher samples of each prompt."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Pass rate from which the gate is open."""


PromptWeight = Annotated[
    Annotated[UniformPrompt | PassRatePrompt | TeacherGatePrompt, Discriminator("type")], _tagged()
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
    teacher_base: ModelConfig
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
    _tagged(),
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
    Annotated[ConstantSchedule | AnnealSchedule | RetireSchedule, Discriminator("type")], _tagged()
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
    Annotated[NoBaseline | KLBaseline | BatchMeanBaseline, Discriminator("type")], _tagged()
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


Objective = Annotated[Annotated[Sampled | TopK | Full, Discriminator("type")], _tagged("top_k")]

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


# --- verifiers -------------------------------------------------------------------------------


class Exact(Section):
    """The completion equals the answer, but for white space around it."""

    type: Literal["exact"] = "exact"


class Numeric(Section):
    """The last number of the completion equals the answer."""

    type: Literal["numeric"] = "numeric"


class Pattern(Section):
    """The first group of a regular expression, searched in the completion, equals the answer."""

    type: Literal["pattern"] = "pattern"
    pattern: str
    """A Python regular expression with one group."""


class ReasoningGym(Section):
    """The scorer of the reasoning-gym dataset that the prompts come from."""

    type: Literal["reasoning_gym"] = "reasoning_gym"
    threshold: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Score from which an answer counts as right."""


Verifier = Annotated[
    Annotated[Exact | Numeric | Pattern | ReasoningGym, Discriminator("type")], _tagged()
]


# --- the sections of a run -------------------------------------------------------------------


class DataConfig(Section):
    """Prompts and how answers are judged."""

    prompts: str
    """A .jsonl, .json or .parquet file, or reasoning_gym:NAME?size=1000&seed=0."""
    eval_prompts: str | None = None
    """Held-out prompts, in the same forms."""
    held_out: NonNegativeInt = 64
    """Without eval_prompts: this many prompts are set aside for evaluation."""
    max_prompt_tokens: PositiveInt = 1024
    """Longer prompts are dropped and counted."""
    use_chat_template: bool = True
    """Plain-text prompts become one user turn where the student has a chat template."""
    verifier: Verifier | None = None
    """How a completion is judged; None measures agreement with the teacher alone."""


class RolloutConfig(Section):
    """What the student samples at each step."""

    prompts_per_step: PositiveInt = 64
    """Prompts of one optimizer step."""
    group_size: PositiveInt = 1
    """Rollouts of each prompt."""
    max_new_tokens: PositiveInt = 512
    """Most tokens of a completion."""
    temperature: PositiveFloat = 1.0
    """Temperature of sampling, and of both sides' log-probabilities."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus kept when sampling; below 1 the samples are no longer from the student."""
    top_k: NonNegativeInt = 0
    """Tokens kept when sampling; 0 keeps all."""
    batch_size: PositiveInt = 256
    """Rollouts decoded at once."""
    student_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of rollouts that the student samples; the teacher samples the rest (GKD's lambda)."""
    delay_steps: NonNegativeInt = 0
    """Steps between sampling a rollout and training on it; above 0 makes rollouts stale."""


class OptimizerConfig(Section):
    """AdamW and its schedule."""

    lr: PositiveFloat = 1e-5
    """Peak learning rate."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After warm-up: stay, or fall to 10 % over the run."""
    warmup_steps: NonNegativeInt = 0
    """Steps of linear warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moment decays."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's decoupled decay."""
    grad_clip: PositiveFloat = 1.0
    """Largest gradient norm."""
    micro_batch_size: PositiveInt = 64
    """Rollouts of one forward and backward; gradients accumulate over the step."""
    aggregation: Literal["token_mean", "sequence_mean"] = "token_mean"
    """Every token of the step weighs the same, or every rollout does."""


class EvaluationConfig(Section):
    """Held-out evaluation during training."""

    every: NonNegativeInt = 20
    """Steps between evaluations; 0 evaluates at the start and the end alone."""
    samples: PositiveInt = 1
    """Completions of each prompt."""
    temperature: NonNegativeFloat = 1.0
    """Sampling temperature; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus kept when sampling."""
    max_new_tokens: PositiveInt | None = None
    """None takes the rollout's."""
    metric: Literal["accuracy", "reverse_kl"] | None = None
    """What the best checkpoint is chosen by; None takes accuracy where answers are verified."""
    patience: NonNegativeInt = 0
    """Evaluations without a new best before the run stops; 0 never stops early."""


class GuardConfig(Section):
    """When a run is stopped before it does harm."""

    non_finite_limit: PositiveInt = 3
    """Steps in a row with a non-finite loss or gradient; none of them is applied."""
    truncated: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Share of truncated rollouts that is a warning, where it was lower at the start."""
    length_factor: Annotated[float, Field(gt=1)] = 2.0
    """Mean length that is this many times longer or shorter than at the start is a warning."""
    window: PositiveInt = 5
    """Steps over which truncation and length are averaged."""
    stop: bool = False
    """Stop on warnings too."""


class RunConfig(Section):
    """Where a run is kept, how long it may take, and its seed."""

    dir: str = "runs/latest"
    """The run directory; must not exist unless resumed or overwritten."""
    seed: NonNegativeInt = 0
    """Everything random is drawn from it."""
    steps: PositiveInt = 100
    """Optimizer steps."""
    max_hours: PositiveFloat | None = None
    """The run saves and ends after this long."""
    save_every: NonNegativeInt = 50
    """Steps between checkpoints; 0 saves at the end alone."""
    keep: PositiveInt = 2
    """Newest checkpoints kept, besides the best and the last."""
    record_rollouts: NonNegativeInt = 8
    """Rollouts written with token-level scores at each evaluation."""
    metrics_k: PositiveInt = 16
    """Size of the top-k sets of the overlap metrics; at most an eighth of the vocabulary."""


class Config(Section):
    """All settings of `tutelage train`."""

    student: ModelConfig
    """The model that learns."""
    teacher: ModelConfig
    """The model that scores."""
    data: DataConfig
    """Prompts and verification."""
    rollout: RolloutConfig = RolloutConfig()
    """Sampling."""
    objective: Objective = TopK()
    """What is minimised."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The update."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Held-out evaluation."""
    guards: GuardConfig = GuardConfig()
    """When to stop."""
    run: RunConfig = RunConfig()
    """The run itself."""

    @model_validator(mode="after")
    def _combination_exists(self) -> "Config":
        objective, judged = self.objective, self.is_judged
        if self.evaluation.metric == "accuracy" and not judged:
            raise ValueError(
                "evaluation.metric: accuracy needs data.verifier; set one, or metric: reverse_kl"
            )
        needs = {
            "objective.prompt_weight": not isinstance(objective.prompt_weight, UniformPrompt),
            "objective.weight correctness": isinstance(objective.weight, CorrectnessWeight),
            "objective.reward": objective.reward is not None,
        }
        for setting, needed in needs.items():
            if needed and not judged:
                raise ValueError(f"{setting} judges rollouts, so it needs data.verifier; set one")
        grouped = {
            "objective.prompt_weight pass_rate": isinstance(
                objective.prompt_weight, PassRatePrompt
            ),
            "objective.reward": objective.reward is not None,
        }
        for setting, needed in grouped.items():
            if needed and self.rollout.group_size < 2:
                raise ValueError(
                    f"{setting} compares the rollouts of one prompt, so it needs "
                    f"rollout.group_size >= 2, not {self.rollout.group_size}"
                )
        if self.rollout.student_share < 1:
            sampled_terms = {
                "objective.type sampled": isinstance(objective, Sampled),
                "objective.return_to_go": objective.return_to_go is not None,
                "objective.reward": objective.reward is not None,
            }
            for setting, used in sampled_terms.items():
                if used:
                    raise ValueError(
                        f"{setting} is a policy gradient: its expectation is over tokens the "
                        f"student drew, and rollout.student_share "
                        f"{self.rollout.student_share} lets the teacher draw some; use top_k or "
                        "full alone, or student_share: 1"
                    )
        return self

    @property
    def is_judged(self) -> bool:
        """Whether answers are verified."""
        return self.data.verifier is not None or self.data.prompts.startswith("reasoning_gym:")


# --- reading ---------------------------------------------------------------------------------


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML in which a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            line = node.start_mark.line + 1
            raise UsageError(f"key {twice!r} stands twice in the block at line {line}; keep one")
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except UsageError as error:
        raise UsageError(f"{origin}: {error}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{origin} is not YAML: {error}") from None


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """A validated config from a YAML file and `--section.key value` words; later wins.

    Raises:
        UsageError: naming the file, the field and what is allowed.

    """
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise UsageError(f"cannot read config {path}: {reason}") from None
        loaded = _parse_yaml(text, str(path))
        if loaded is not None and not isinstance(loaded, dict):
            raise UsageError(f"{path} holds {type(loaded).__name__}, not a mapping of sections")
        tree = loaded or {}
    for key, value in _pairs(overrides):
        _set(tree, key, value)
    return parse_config(tree, str(path) if path is not None else "the flags")


def parse_config(tree: Mapping[str, Any], origin: str = "the config") -> Config:
    """A validated config from a tree of plain values.

    Raises:
        UsageError: one line a fault.

    """
    return section(Config, tree, origin)


def section(kind: type[S], tree: Mapping[str, Any], origin: str = "the flags") -> S:
    """One validated section from a tree of plain values.

    Raises:
        UsageError: one line a fault.

    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        faults = [_explain(fault, kind) for fault in error.errors()]
        raise UsageError(f"{origin}: " + "\n".join(faults)) from None


def dump_config(config: Config) -> str:
    """The resolved settings as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def config_keys(section: type[Section] = Config, prefix: str = "") -> dict[str, str]:
    """Every dotted key with its description, for help pages and suggestions."""
    keys: dict[str, str] = {}
    for name, info in section.model_fields.items():
        parts = _sections_of(info.annotation)
        if not parts:
            keys[prefix + name] = info.description or ""
        for part in parts:
            keys |= config_keys(part, f"{prefix}{name}.")
    return keys


def _sections_of(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for inner in get_args(annotation) for section in _sections_of(inner)]


def _pairs(words: Sequence[str]) -> list[tuple[str, Any]]:
    """`--a.b v` and `--a.b=v` as (key, value) pairs."""
    pairs: list[tuple[str, Any]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise UsageError(
                f"unexpected argument {word!r}; settings are written --section.key value"
            )
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not rest:
                raise UsageError(f"--{key} lacks a value; write --{key} VALUE")
            value = rest.pop(0)
        pairs.append((key, _parse_yaml(value, f"--{key}")))
    return pairs


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        child = tree.get(parent)
        if isinstance(child, str):  # the short form of a tagged section
            child = {"type": child}
        tree[parent] = child = dict(child or {})
        tree = child
    tree[last] = value


def _explain(fault: ErrorDetails, root: type[Section]) -> str:
    path, siblings = _field_path(fault["loc"], root)
    where = ".".join(path)
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "extra_forbidden":
        return f"{where} does not exist. {did_you_mean(path[-1], siblings)}"
    if kind == "missing":
        return f"{where} is missing; it has no default"
    if kind == "union_tag_not_found":
        return f"{where}.type is missing; write a name alone, or a mapping with a type"
    if kind == "union_tag_invalid":
        tag = str(context.get("tag"))
        if where == "objective" and tag in ESTIMATORS_THAT_DO_NOT_DISTIL:
            return f"objective.type {tag!r} does not distil: {ESTIMATORS_THAT_DO_NOT_DISTIL[tag]}"
        expected = str(context.get("expected_tags", "")).replace("'", "").split(", ")
        return f"{where}.type {tag!r} does not exist. {did_you_mean(tag, expected)}"
    prefix = f"{where}: " if where else ""
    if kind == "value_error":
        return f"{prefix}{context['error']}"
    return f"{prefix}{fault['msg'][0].lower()}{fault['msg'][1:]}, got {fault['input']!r}"


def _field_path(location: tuple[int | str, ...], root: type[Section]) -> tuple[list[str], set[str]]:
    """A fault's place as dotted keys, and the keys that exist there.

    pydantic's location also names the branches of unions that it took; they are
    no keys, and serve only to know which section the rest is in.
    """
    path: list[str] = []
    inside: list[type[Section]] = [root]
    known: set[str] = set()
    for part in map(str, location):
        fields = {name: info for section in inside for name, info in section.model_fields.items()}
        known = set(fields)
        branch = [s for s in inside if part in (s.__name__, _tag(s))]
        if part in fields:
            path.append(part)
            inside = _sections_of(fields[part].annotation)
        elif branch:
            inside = branch
        elif not part.startswith("literal["):
            path.append(part)
            inside = []
    return path, known


def _tag(section: type[Section]) -> object:
    field = section.model_fields.get("type")
    return field.default if field is not None else None
