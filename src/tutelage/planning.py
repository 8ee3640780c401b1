"""What a run will need, from the settings and the headers of the weights alone."""

from dataclasses import asdict, dataclass
from typing import Any

from tutelage.config import Config
from tutelage.models.checkpoints import open_folder

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# As ops.projection cuts them (this module does without torch): logits of so many numbers at once.
CHUNK_ELEMENTS = 2**24
_BUFFERS = 9  # tensors of a chunk's size that live at once: 7, and more with a mixture divergence


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes in bytes and counts of a run; upper bounds where lengths vary."""

    student_parameters: int
    """Stored numbers of the student."""
    teacher_parameters: int
    """Stored numbers of the teacher."""
    student_bytes: int
    """Student weights."""
    gradient_bytes: int
    """Gradients of the student."""
    optimizer_bytes: int
    """AdamW's two moments."""
    teacher_bytes: int
    """Teacher weights; 0 at a server, which holds them."""
    hidden_bytes: int
    """Last hidden states of one micro-batch at full length, with the student's gradient."""
    logits_bytes: int
    """Log-probabilities of one chunk of tokens: both sides, the gradient and what is measured."""
    total_bytes: int
    """Sum of the above; activations and the decoding cache come on top, and the logits of a whole
    micro-batch where a model's head does more to the hidden states than a plain projection."""
    rollouts_per_step: int
    """Rollouts of one optimizer step."""
    tokens_per_step: int
    """Most completion tokens of one step."""
    tokens: int
    """Most completion tokens of the run."""
    steps: int
    """Optimizer steps."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def table(self) -> str:
        """The plan for a reader."""
        rows = [
            (
                key.replace("_bytes", "").replace("_", " "),
                f"{value / 2**20:,.1f} MiB" if key.endswith("_bytes") else f"{value:,}",
            )
            for key, value in self.to_dict().items()
        ]
        return "\n".join(f"{name:20} {value:>16}" for name, value in rows)


def plan(config: Config) -> Plan:
    """Memory and tokens of a run.

    Raises:
        UsageError: a model directory that cannot be used.
    """
    student = open_folder(config.student.path, "student")
    is_served = config.teacher.server is not None
    teacher = open_folder(config.teacher.path, "teacher", weights=not is_served)
    rollout = config.rollout
    rollouts = rollout.prompts_per_step * rollout.group_size
    in_memory = min(config.optimizer.micro_batch_size, rollouts)
    scored = in_memory * rollout.max_new_tokens
    hidden = 4 * scored * (2 * student.width + teacher.width)
    vocabulary = max(1, student.vocabulary, teacher.vocabulary)
    chunk = min(scored, max(16, CHUNK_ELEMENTS // vocabulary))
    logits = 4 * _BUFFERS * chunk * vocabulary
    student_bytes = student.parameters * _BYTES[config.student.dtype]
    teacher_bytes = 0 if is_served else teacher.parameters * _BYTES[config.teacher.dtype]
    tokens = rollouts * rollout.max_new_tokens
    return Plan(
        student_parameters=student.parameters,
        teacher_parameters=teacher.parameters,
        student_bytes=student_bytes,
        gradient_bytes=student_bytes,
        optimizer_bytes=2 * student_bytes,
        teacher_bytes=teacher_bytes,
        hidden_bytes=hidden,
        logits_bytes=logits,
        total_bytes=4 * student_bytes + teacher_bytes + hidden + logits,
        rollouts_per_step=rollouts,
        tokens_per_step=tokens,
        tokens=tokens * config.run.steps,
        steps=config.run.steps,
    )
