"""What can be said of a model directory without loading its weights (and without torch)."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tutelage.errors import UsageError

_WEIGHTS = "model*.safetensors"  # what transformers loads; optimizer states stand beside it


@dataclass(frozen=True)
class ModelFolder:
    """A directory that holds a Hugging Face causal language model."""

    path: Path
    """The directory."""
    role: str
    """student or teacher, for messages."""

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json; of a model of several modalities the part about text."""
        content = self.read("config.json")
        text = content.get("text_config")
        return {**content, **text} if isinstance(text, dict) else content

    def read(self, name: str) -> dict[str, Any]:
        """A JSON object of the folder.

        Raises:
            UsageError: it is damaged.
        """
        file = self.path / name
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UsageError(
                f"{self.role} model: {file} is damaged ({error}); copy the model anew"
            ) from None
        if not isinstance(content, dict):
            raise UsageError(
                f"{self.role} model: {file} holds {type(content).__name__}, not an object"
            )
        return content

    @cached_property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shape of every stored weight, read from the safetensors headers."""
        shapes: dict[str, tuple[int, ...]] = {}
        for file in sorted(self.path.glob(_WEIGHTS)):
            try:
                shapes |= _header_shapes(file)
            except (OSError, ValueError, LookupError, TypeError, AttributeError):
                raise UsageError(
                    f"{self.role} model: {file} has no whole safetensors header, so it is "
                    "damaged; copy the model anew"
                ) from None
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

    @property
    def width(self) -> int:
        """Numbers in a hidden state."""
        names = ("hidden_size", "n_embd", "d_model")
        return next((int(self.config[name]) for name in names if self.config.get(name)), 0)


def _header_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if not 2 <= size <= 100_000_000:
            raise ValueError("no header")
        header = json.loads(stream.read(size))
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    ends = [int(entry["data_offsets"][1]) for entry in tensors.values()]
    if file.stat().st_size != 8 + size + max(ends, default=0):
        raise ValueError("truncated")
    return {name: tuple(entry["shape"]) for name, entry in tensors.items()}


def open_folder(path: str, role: str, *, weights: bool = True) -> ModelFolder:
    """The model directory at `path`.

    Args:
        path: the directory.
        role: student or teacher, for messages.
        weights: whether it must hold weights; those of a served model are at its server.

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
    if weights and not any(folder.glob(_WEIGHTS)):
        pickles = [f.name for pattern in ("*.bin", "*.pt", "*.pth") for f in folder.glob(pattern)]
        if pickles:
            raise UsageError(
                f"{role} model: {path} has only pickled weights ({pickles[0]}), which can run "
                "code when loaded; convert them to safetensors first"
            )
        raise UsageError(
            f"{role} model: {path} has no weights; model.safetensors, or its shards, must stand "
            "next to config.json"
        )
    return ModelFolder(folder, role)
