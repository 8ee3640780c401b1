"""The settings of a run."""

from typing import Annotated, Literal

from pydantic import (
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from tutelage.config.align import AlignConfig
from tutelage.config.base import Section, tagged
from tutelage.config.check import CheckConfig
from tutelage.config.cold_start import ColdStartConfig
from tutelage.config.control import Control, NoControl, WrongContext
from tutelage.config.distributed import FSDP2, Distributed, SingleProcess
from tutelage.config.engine import Engine, LocalEngine
from tutelage.config.guards import GuardConfig
from tutelage.config.models import ModelConfig, StudentConfig
from tutelage.config.objective import (
    CorrectnessWeight,
    Objective,
    PassRatePrompt,
    Sampled,
    TopK,
    UniformPrompt,
)
from tutelage.config.self_teacher import CONTEXTS, EMATeacher, SelfTeacher, Teacher, as_model
from tutelage.config.trackers import Trackers


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


class _InProcesses(Section):
    """A verifier that judges in processes of its own."""

    deadline_s: PositiveFloat = 5.0
    """Processor seconds after which an answer is given up and counts as unknown; ten times that by
    the clock."""
    workers: PositiveInt = 2
    """Most processes that judge at once."""


class Math(_InProcesses):
    """The final answer equals the reference as mathematics, by math-verify in processes of its own.

    The final answer is the last \\boxed{}, else the last line marked `Answer:`, `answer is` or
    `####`, else what the end of the completion says.
    """

    type: Literal["math"] = "math"


class Function(_InProcesses):
    """A function of your own: (prompt, completion text) -> 1 right, 0 wrong, None unknown.

    It runs in processes of its own.
    """

    type: Literal["function"] = "function"
    path: str
    """package.module:name or file.py:name."""


class ReasoningGym(_InProcesses):
    """The scorer of the reasoning-gym dataset that the prompts come from."""

    type: Literal["reasoning_gym"] = "reasoning_gym"
    threshold: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Score from which an answer counts as right."""


Verifier = Annotated[
    Annotated[Exact | Numeric | Pattern | Math | Function | ReasoningGym, Discriminator("type")],
    tagged(),
]


class DataConfig(Section):
    """Prompts and how answers are judged."""

    prompts: str
    """A .jsonl, .json, .csv or .parquet file, hub:OWNER/NAME@COMMIT?split=train&config=main,
    or reasoning_gym:NAME?size=1000&seed=0."""
    eval_prompts: str | None = None
    """Held-out prompts, in the same forms."""
    held_out: NonNegativeInt = 64
    """Without eval_prompts: this many prompts are set aside for evaluation, half of all at most."""
    max_prompt_tokens: PositiveInt = 1024
    """Longer prompts are dropped and counted."""
    use_chat_template: bool = True
    """Plain-text prompts become one user turn where the student has a chat template."""
    verifier: Verifier | None = None
    """How a completion is judged; None measures agreement with the teacher alone."""


class WholeAnswers(Section):
    """Rollouts go on until they end or have `max_new_tokens`."""

    type: Literal["whole"] = "whole"


class GrowingHorizon(Section):
    """The first rollouts are cut short, later ones less, in equal parts (2605.31490).

    What is learned early in an answer need not be paid for to its end. Cut rollouts are not
    judged, and their lengths not recorded.
    """

    type: Literal["growing"] = "growing"
    start: PositiveInt
    """Most tokens of a rollout at the first step."""
    steps: PositiveInt
    """Steps until rollouts are whole."""


Horizon = Annotated[
    Annotated[WholeAnswers | GrowingHorizon, Discriminator("type")], tagged("growing")
]


class RolloutConfig(Section):
    """What the student samples at each step."""

    prompts_per_step: PositiveInt = 64
    """Prompts of one optimizer step."""
    group_size: PositiveInt = 1
    """Rollouts of each prompt."""
    max_new_tokens: PositiveInt = 512
    """Most tokens of a completion."""
    horizon: Horizon = WholeAnswers()
    """Whether the rollouts of the first steps are cut short."""
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
    steps_per_generation: PositiveInt = 1
    """Steps whose rollouts are decoded together, which takes little longer than those of one; those
    of the last such step are older than its weights by one less than this."""
    delay_steps: NonNegativeInt = 0
    """Steps between sampling a rollout and training on it; above 0 makes rollouts stale."""

    @model_validator(mode="after")
    def _horizon_grows(self) -> "RolloutConfig":
        horizon = self.horizon
        if isinstance(horizon, GrowingHorizon) and horizon.start >= self.max_new_tokens:
            raise ValueError(
                f"horizon.start {horizon.start} grows to max_new_tokens, which is "
                f"{self.max_new_tokens}; give a smaller start, or leave horizon out"
            )
        return self

    def at(self, step: int) -> "RolloutConfig":
        """These settings with `max_new_tokens` as far as the horizon is after `step` steps."""
        match self.horizon:
            case GrowingHorizon(start=start, steps=steps) if step < steps:
                limit = start + (self.max_new_tokens - start) * step // steps
                return self.model_copy(update={"max_new_tokens": limit})
            case _:
                return self


Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    """AdamW and its schedule."""

    lr: PositiveFloat = 1e-5
    """Peak learning rate."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After warm-up: stay, or fall to 10 % over the run."""
    warmup_steps: NonNegativeInt = 0
    """Steps of linear warm-up."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW's moment decays."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's decoupled decay."""
    grad_clip: PositiveFloat = 1.0
    """Largest gradient norm."""
    micro_batch_size: PositiveInt = 64
    """Rollouts of one forward and backward; gradients accumulate over the step."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the student's layers in forward and backward; its weights, its logits and all statistics
    stay float32."""
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
    teacher: NonNegativeInt = 64
    """Held-out questions that the teacher answers once, before the first step, so that `explain`
    knows what it can; 0 asks none."""
    patience: NonNegativeInt = 0
    """Evaluations without a new best before the run stops; 0 never stops early."""


class RunConfig(Section):
    """Where a run is kept, how long it may take, and its seed."""

    dir: str = "runs/latest"
    """The run directory; must not exist unless resumed or overwritten."""
    seed: NonNegativeInt = 0
    """Everything random is drawn from it."""
    steps: PositiveInt = 100
    """Optimizer steps."""
    max_hours: PositiveFloat | None = None
    """This sitting saves and ends after that long; --resume begins another."""
    save_every: NonNegativeInt = 50
    """Steps between checkpoints; 0 saves at the end alone."""
    keep: PositiveInt = 2
    """Newest checkpoints kept, besides the best."""
    keep_best: PositiveInt = 1
    """Checkpoints of the best evaluations kept."""
    record_rollouts: NonNegativeInt = 8
    """Rollouts written with token-level scores at each evaluation."""
    metrics_k: PositiveInt = 16
    """Size of the top-k sets of the overlap metrics; at most an eighth of the vocabulary."""
    trackers: Trackers = ()
    """Mirrors of metrics.jsonl, each at most once; names suffice: tensorboard, trackio, wandb."""
    tracker_wait_s: NonNegativeFloat = 15.0
    """Most seconds that the end of a run waits until its mirrors are whole."""

    @field_validator("trackers")
    @classmethod
    def _each_once(cls, trackers: Trackers) -> Trackers:
        types = [tracker.type for tracker in trackers]
        if twice := {name for name in types if types.count(name) > 1}:
            raise ValueError(f"{', '.join(sorted(twice))} stands twice; keep one")
        return trackers


# Arguments of transformers' apply_chat_template that are not handed to the template.
_OWN_TEMPLATE_ARGUMENTS = {
    "conversation",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
    "sanitize_control_tokens",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
    "tokenizer_kwargs",
}


class Config(Section):
    """All settings of `tutelage train`."""

    student: StudentConfig
    """The model that learns."""
    teacher: Teacher
    """The model that scores; type initial, ema or current makes it the student itself."""
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
    align: AlignConfig = AlignConfig()
    """Gradient alignment by targeted rollouts; read by `align`."""
    check: CheckConfig = CheckConfig()
    """What is measured before training; read by `check`."""
    cold_start: ColdStartConfig = ColdStartConfig()
    """The teacher's answers and their imitation; read by `rescue cold-start`."""
    control: Control = NoControl()
    """What takes the teacher's place, to tell what a gain came from; `rescue controls` sets it."""
    distributed: Distributed = SingleProcess()
    """Several processes that train as one, started by torchrun or another launcher."""
    engine: Engine = LocalEngine()
    """Where units of `check`, `align`, `eval` and `rescue cold-start` are done; they come out the
    same everywhere."""
    run: RunConfig = RunConfig()
    """The run itself."""

    @property
    def teacher_model(self) -> ModelConfig:
        """The teacher as a model at a place; a self-teacher is where the student is."""
        return as_model(self.teacher, self.student)

    @model_validator(mode="after")
    def _models_fit_their_part(self) -> "Config":
        student = self.student
        frozen = student.lora is not None and student.dtype == "bfloat16"
        if student.dtype != "float32" and not frozen:
            raise ValueError(
                f"student.dtype {student.dtype} cannot be trained: an AdamW step of lr 1e-5 "
                "is smaller than the gap between neighbouring bfloat16 numbers, so most of it is "
                "lost, and float16 overflows; leave it float32 and set optimizer.precision: "
                "bfloat16 (teacher.dtype may be bfloat16, and the student's with student.lora)"
            )
        for role, model in (("student", self.student), ("teacher", self.teacher)):
            if owned := _OWN_TEMPLATE_ARGUMENTS & model.template.keys():
                raise ValueError(
                    f"{role}.template: {', '.join(sorted(owned))} is set by tutelage when it "
                    "renders a prompt; leave it out, and give only what the template itself asks "
                    "for"
                )
        halved_teacher = isinstance(self.teacher, SelfTeacher) and (
            self.optimizer.precision == "bfloat16"
        )
        for role, model, halved, cure in (
            ("student", student, self.optimizer.precision == "bfloat16", "optimizer.precision"),
            ("teacher", self.teacher_model, halved_teacher, "teacher.dtype"),
        ):
            if model.attention == "flash_attention_2" and model.dtype == "float32" and not halved:
                raise ValueError(
                    f"{role}.attention flash_attention_2 computes in bfloat16 or float16 alone; "
                    f"set {cure}: bfloat16, or attention: sdpa"
                )
        return self

    @model_validator(mode="after")
    def _servers_fit_their_part(self) -> "Config":
        student, teacher = self.student.server, self.teacher_model.server
        if student is not None and student.cache is not None:
            raise ValueError("student.server.cache: only a teacher's scores are kept; leave it out")
        if teacher is not None and teacher.weights is not None:
            raise ValueError(
                "teacher.server.weights: a teacher does not learn, so its server's weights stay; "
                "leave it out"
            )
        return self

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
            if needed and isinstance(self.rollout.horizon, GrowingHorizon):
                raise ValueError(
                    f"{setting} judges rollouts, and rollout.horizon cuts them before they have "
                    "an answer; leave rollout.horizon out"
                )
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

    @model_validator(mode="after")
    def _probe_can_act(self) -> "Config":
        probe = self.align.probe
        if probe is None:
            return self
        if not self.is_judged:
            raise ValueError(
                "align.probe asks which tokens lead to right answers, so it needs "
                "data.verifier; set one"
            )
        if self.rollout.top_p < 1 or self.rollout.top_k:
            raise ValueError(
                "align.probe compares the student's probabilities with its own "
                "rollouts; leave rollout.top_p 1 and rollout.top_k 0"
            )
        others = self.align.teachers
        if probe.policy.type == "switch_teacher":
            if not others:
                raise ValueError(
                    "align.probe.policy switch_teacher needs another teacher in align.teachers"
                )
            taught = {"teacher": self.teacher_model, **others}
            own = [name for name, model in taught.items() if model.own_prompt]
            if own:
                raise ValueError(
                    f"align.probe.policy switch_teacher: {', '.join(own)} reads a prompt of its "
                    "own, and all teachers of a run must read what the student reads"
                )
        return self

    @model_validator(mode="after")
    def _contexts_can_be_shown(self) -> "Config":
        columns = self.teacher_model.columns
        if columns & {"correct", "wrong", "attempt", "verdict"}:
            if isinstance(self.rollout.horizon, GrowingHorizon):
                raise ValueError(
                    "teacher: its context shows right or wrong rollouts, and rollout.horizon cuts "
                    "them before they have an answer; leave rollout.horizon out"
                )
            if not self.is_judged:
                raise ValueError(
                    "teacher: its context shows right or wrong rollouts, so it needs "
                    "data.verifier; set one"
                )
            if self.rollout.group_size < 2:
                raise ValueError(
                    "teacher: its context shows other rollouts of the same question, so it needs "
                    f"rollout.group_size >= 2, not {self.rollout.group_size}"
                )
        if isinstance(self.control, WrongContext) and not columns:
            raise ValueError(
                "control wrong_context: the teacher is shown nothing but the question; give "
                "teacher.user_prompt (or a self-teacher's context) with {answer} or another "
                f"column, such as {CONTEXTS['answer']!r}"
            )
        return self

    @model_validator(mode="after")
    def _baseline_has_its_name(self) -> "Config":
        if self.check.baseline is not None and "baseline" in self.align.teachers:
            raise ValueError(
                "align.teachers: `baseline` is the name of check.baseline; choose another name"
            )
        return self

    @model_validator(mode="after")
    def _right_answers_can_be_told(self) -> "Config":
        if self.cold_start.right_only and not self.is_judged:
            raise ValueError(
                "cold_start.right_only keeps what data.verifier finds right, and there is none; "
                "set one, or leave right_only out"
            )
        return self

    @model_validator(mode="after")
    def _ranks_can_do_it(self) -> "Config":
        if isinstance(self.distributed, SingleProcess):
            return self
        if self.student.server is not None:
            raise ValueError(
                "student.server: its weights are synced by one process, so a run of several ranks "
                "samples in process, every rank its share; leave student.server out"
            )
        if isinstance(self.distributed, FSDP2):
            if self.student.lora is not None:
                raise ValueError(
                    "distributed fsdp2 shards weights that learn, and with student.lora few do; "
                    "use distributed: ddp, or leave student.lora out"
                )
            if isinstance(self.teacher, EMATeacher):
                raise ValueError(
                    "distributed fsdp2: a moving average of sharded weights is not kept; use "
                    "distributed: ddp, or teacher type initial"
                )
        return self

    @property
    def is_judged(self) -> bool:
        """Whether answers are verified."""
        return self.data.verifier is not None or self.data.prompts.startswith("reasoning_gym:")
