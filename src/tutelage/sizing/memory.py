"""What one device of a run holds, by role, while it samples and while it updates."""

from dataclasses import asdict, dataclass
from typing import Literal

from tutelage.config import Config
from tutelage.planning import plan
from tutelage.sizing.shapes import Shape

Kind = Literal["none", "ddp", "fsdp2"]
# Of a device's memory; the rest is the driver's, the allocator's gaps, and what a sweep needs.
USABLE = 0.92


@dataclass(frozen=True, kw_only=True)
class DeviceMemory:
    """Bytes on one device; upper bounds where lengths vary."""

    student: int
    """Weights of the student that it keeps."""
    casts: int
    """Copies in bfloat16, where layers compute so."""
    gathered: int
    """fsdp2: what is gathered at a time in the update: embedding, head, and two layers."""
    whole: int
    """fsdp2: the whole student, gathered while it samples."""
    gradients: int
    optimizer: int
    """AdamW's two moments."""
    teacher: int
    references: int
    activations: int
    """What layers keep of one micro-batch for the backward pass, attention matrices aside."""
    hidden: int
    logits: int
    """Of one chunk of tokens."""
    cache: int
    """Keys and values of the rollouts that are decoded at once, at full length."""

    @property
    def sampling(self) -> int:
        """Most while it samples."""
        kept = self.student + self.casts + self.optimizer + self.teacher + self.references
        return kept + self.whole + self.cache

    @property
    def updating(self) -> int:
        """Most while it updates."""
        kept = self.student + self.casts + self.optimizer + self.teacher + self.references
        passing = self.gradients + self.activations + self.hidden + self.logits
        return kept + self.gathered + passing

    @property
    def most(self) -> int:
        """The larger of both."""
        return max(self.sampling, self.updating)

    def to_dict(self) -> dict[str, int]:
        """Plain values, sums included."""
        return {**asdict(self), "sampling": self.sampling, "updating": self.updating}


def device_memory(
    config: Config, student: Shape, *, kind: Kind, ranks: int, teacher_here: bool
) -> DeviceMemory:
    """What a device of `ranks` holds."""
    sizes = plan(config, ranks)
    part = ranks if kind == "fsdp2" else 1
    short = config.optimizer.precision == "bfloat16"
    rollouts = -(-sizes.rollouts_per_step // ranks)
    tokens = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    micro = min(config.optimizer.micro_batch_size, rollouts)
    number = 2 if short or config.student.dtype == "bfloat16" else 4
    kept = student.kept(checkpointing=config.student.gradient_checkpointing)
    widths = 6 * student.width * (1 if config.student.gradient_checkpointing else student.layers)
    activations = number * kept + (4 - number) * widths  # norms compute in float32
    layer = student.body // max(1, student.layers)
    # float32 and its cast, for the layer that runs and the next one
    gathered = 2 * 4 * student.head + 2 * layer * 4 if kind == "fsdp2" else 0
    return DeviceMemory(
        student=sizes.student_bytes // part,
        casts=(2 * student.parameters if part == 1 else 2 * 2 * layer) if short else 0,
        gathered=gathered,
        whole=sizes.student_bytes if kind == "fsdp2" else 0,
        gradients=sizes.gradient_bytes // part,
        optimizer=sizes.optimizer_bytes // part,
        teacher=sizes.teacher_bytes if teacher_here else 0,
        references=sizes.reference_bytes,
        activations=micro * tokens * activations,
        hidden=sizes.hidden_bytes,
        logits=sizes.logits_bytes,
        cache=min(config.rollout.batch_size, rollouts) * tokens * student.cached * number,
    )
