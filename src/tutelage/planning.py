"""What a run will need, from the settings and the headers of the weights alone."""

import re
from dataclasses import asdict, dataclass
from typing import Any

from tutelage.config import (
    Config,
    CurrentTeacher,
    InitialTeacher,
    LocalModelConfig,
    LoRA,
    reference_models,
)
from tutelage.models.checkpoints import ModelFolder, open_folder

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# As ops.projection cuts them (this module does without torch): logits of so many numbers at once.
CHUNK_ELEMENTS = {"cpu": 2**22}  # as in ops/projection.py, which needs torch
CHUNK_ELEMENTS_ELSEWHERE = 2**24
_EMBEDDING = re.compile(r"wte|wpe|lm_head|\w*embed\w*")
_BUFFERS = 9  # tensors of a chunk's size that live at once: 7, and more with a mixture divergence


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes in bytes and counts of a run; upper bounds where lengths vary."""

    student_parameters: int
    """Stored numbers of the student."""
    trained_parameters: int
    """Numbers of the student that change: all, or those of the LoRA additions."""
    teacher_parameters: int
    """Stored numbers of the teacher."""
    reference_parameters: int
    """Stored numbers of the objective's further models; `initial` shares a LoRA student's."""
    student_bytes: int
    """Student weights, LoRA additions included."""
    gradient_bytes: int
    """Gradients of what is trained."""
    optimizer_bytes: int
    """AdamW's two moments."""
    teacher_bytes: int
    """Teacher weights; 0 at a server, which holds them, and where they are the student's."""
    reference_bytes: int
    """Weights of the objective's further models."""
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
    note: str
    """What comes on top, in words."""

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
            if key != "note"
        ]
        return "\n".join([*(f"{name:20} {value:>16}" for name, value in rows), self.note])


def plan(config: Config, ranks: int = 1) -> Plan:
    """Memory and tokens of a run; of one of its `ranks` what each has alone.

    Raises:
        UsageError: a model directory that cannot be used.
    """
    settings, lora = config.teacher_model, config.student.lora
    is_served = settings.server is not None
    shared = isinstance(config.teacher, CurrentTeacher) or (
        isinstance(config.teacher, InitialTeacher) and lora is not None
    )
    student = _open(config.student, "student")
    teacher = _open(settings, "teacher", weights=not is_served)
    references = [
        (config.student if setting == "initial" else setting, setting != "initial" or lora is None)
        for setting in reference_models(config.objective).values()
    ]
    opened = [(_open(m, "reference"), _BYTES[m.dtype], own) for m, own in references]
    rollout = config.rollout
    rollouts = rollout.prompts_per_step * rollout.group_size
    in_memory = min(config.optimizer.micro_batch_size, -(-rollouts // ranks))
    scored = in_memory * rollout.max_new_tokens
    hidden = 4 * scored * (2 * student.width + teacher.width + sum(f.width for f, _, _ in opened))
    vocabulary = max(1, student.vocabulary, teacher.vocabulary)
    elements = CHUNK_ELEMENTS.get(config.student.device, CHUNK_ELEMENTS_ELSEWHERE)
    chunk = min(scored, max(16, elements // vocabulary))
    logits = 4 * _BUFFERS * chunk * vocabulary
    trained = student.parameters if lora is None else lora_parameters(student, lora)
    student_bytes = student.parameters * _BYTES[config.student.dtype]
    if lora is not None:
        student_bytes += 4 * trained
    teacher_bytes = 0 if is_served or shared else teacher.parameters * _BYTES[settings.dtype]
    reference_bytes = sum(folder.parameters * size for folder, size, own in opened if own)
    tokens = rollouts * rollout.max_new_tokens
    return Plan(
        student_parameters=student.parameters,
        trained_parameters=trained,
        teacher_parameters=teacher.parameters,
        reference_parameters=sum(folder.parameters for folder, _, own in opened if own),
        student_bytes=student_bytes,
        gradient_bytes=4 * trained,
        optimizer_bytes=8 * trained,
        teacher_bytes=teacher_bytes,
        reference_bytes=reference_bytes,
        hidden_bytes=hidden,
        logits_bytes=logits,
        total_bytes=student_bytes
        + 12 * trained
        + teacher_bytes
        + reference_bytes
        + hidden
        + logits,
        rollouts_per_step=rollouts,
        tokens_per_step=tokens,
        tokens=tokens * config.run.steps,
        steps=config.run.steps,
        note=_note(config),
    )


def lora_parameters(folder: ModelFolder, lora: LoRA) -> int:
    """Numbers of the LoRA additions: rank x (inputs + outputs) of every layer that gets one."""
    total = 0
    for name, shape in folder.tensors.items():
        layer = name.removesuffix(".weight")
        if len(shape) != 2 or layer == name:
            continue
        if lora.target_modules == "all-linear":
            named = _EMBEDDING.fullmatch(layer.rpartition(".")[2]) is None
        else:
            named = any(layer == t or layer.endswith(f".{t}") for t in lora.target_modules)
        total += lora.rank * sum(shape) if named else 0
    return total


def _open(settings: LocalModelConfig, role: str, *, weights: bool = True) -> ModelFolder:
    return open_folder(settings.path, role, settings.revision, weights=weights)


def _note(config: Config) -> str:
    if config.student.gradient_checkpointing:
        return (
            "on top: the decoding cache, and activations of one layer and every layer's input "
            "(student.gradient_checkpointing), for which each layer runs a second time"
        )
    return (
        "on top: the decoding cache, and activations of every layer of one micro-batch "
        "(student.gradient_checkpointing keeps those of one layer)"
    )
