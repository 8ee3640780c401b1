"""What can be said of a model directory without loading its weights (and without torch)."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tutelage.errors import UsageError

_DTYPE_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


@dataclass(frozen=True)
class ModelFolder:
    """A directory that holds a Hugging Face causal language model."""

    path: Path
    """The directory."""
    role: str
    """student or teacher, for messages."""

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json."""
        text = (self.path / "config.json").read_text(encoding="utf-8")
        content: dict[str, Any] = json.loads(text)
        return content

    @cached_property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shape of every stored tensor, read from the safetensors headers."""
        shapes: dict[str, tuple[int, ...]] = {}
        for file in sorted(self.path.glob("*.safetensors")):
            with file.open("rb") as stream:
                size = int.from_bytes(stream.read(8), "little")
                if not 2 <= size <= 100_000_000:
                    raise UsageError(f"{self.role} weights {file} have no safetensors header")
                header = json.loads(stream.read(size))
            shapes |= {k: tuple(v["shape"]) for k, v in header.items() if k != "__metadata__"}
        return shapes

    @property
    def parameters(self) -> int:
        """Stored numbers; tied weights count once."""
        total = 0
        for shape in self.tensors.values():
            count = 1
            for size in shape:
                count *= size
            total += count
        return total

    @property
    def vocabulary(self) -> int:
        """Rows of the output head, padding included."""
        return int(self.config.get("vocab_size", 0))


def open_folder(path: str, role: str) -> ModelFolder:
    """The model directory at `path`.

    Raises:
        UsageError: no such directory, no config.json, no safetensors weights.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UsageError(
            f"{role} model: there is no directory {path}; give the path of a downloaded model"
        )
    if not (folder / "config.json").is_file():
        raise UsageError(f"{role} model: {path} has no config.json, so it is not a saved model")
    if not any(folder.glob("*.safetensors")):
        pickles = [f.name for pattern in ("*.bin", "*.pt", "*.pth") for f in folder.glob(pattern)]
        if pickles:
            raise UsageError(
                f"{role} model: {path} has only pickled weights ({pickles[0]}), which can run "
                "code when loaded; convert them to safetensors first"
            )
        raise UsageError(
            f"{role} model: {path} has no weights; a *.safetensors file must stand next to "
            "config.json"
        )
    return ModelFolder(folder, role)
