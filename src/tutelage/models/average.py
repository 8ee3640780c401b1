"""A moving average of a student's weights, as a model that teaches."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from tutelage.models.local import LocalModel

FILE = "average.safetensors"
"""Its weights in a checkpoint."""


class Average:
    """average <- decay * average + (1 - decay) * student, after each step.

    Of a LoRA student only the additions move, so only they are averaged.
    """

    def __init__(self, model: LocalModel, decay: float) -> None:
        """Take a model like the student, as it was before the first step."""
        self.model, self.decay = model, decay
        self.averaged = {n: p for n, p in model.model.named_parameters() if p.requires_grad}
        model.model.requires_grad_(False)

    @torch.no_grad()
    def follow(self, student: LocalModel) -> None:
        """Move towards the student."""
        now = dict(student.model.named_parameters())
        for name, mean in self.averaged.items():
            mean.lerp_(now[name].to(mean), 1 - self.decay)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of it."""
        return {name: mean.detach().contiguous() for name, mean in self.averaged.items()}

    @torch.no_grad()
    def restore(self, checkpoint: Path) -> None:
        """The average as a checkpoint holds it."""
        for name, kept in load_file(checkpoint / FILE).items():
            self.averaged[name].copy_(kept)
