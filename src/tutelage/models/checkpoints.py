"""What can be said of a saved model without loading its weights (and without torch)."""

import errno
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

from tutelage.config import LocalModelConfig, PromptFormat
from tutelage.config.base import AnySection, Section
from tutelage.errors import ServerError, UsageError, first_line
from tutelage.paths import usable_path

_WEIGHTS = "model*.safetensors"  # what transformers loads; optimizer states stand beside it
_INDEX = "model.safetensors.index.json"
_ADAPTER, _ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Nothing else is fetched from a hub: no pickles, no code, no second copies in other formats.
_FETCHED = ["*.json", "*.jinja", "*.txt", "tokenizer*.model", _WEIGHTS, _ADAPTER_WEIGHTS]


@dataclass(frozen=True)
class ModelFolder:
    """A directory that holds a Hugging Face causal language model."""

    path: Path
    """The directory of the weights."""
    role: str
    """student or teacher, for messages."""
    adapters: tuple[Path, ...] = ()
    """Directories of LoRA adapters to merge into them, in this order."""

    @property
    def tokenizer(self) -> Path:
        """The directory of the tokenizer: the last adapter's own where it has one."""
        own = [a for a in self.adapters if (a / "tokenizer_config.json").is_file()]
        return own[-1] if own else self.path

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
            except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
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
        return self.number("vocab_size") or 0

    @property
    def width(self) -> int:
        """Numbers in a hidden state."""
        return self.number("hidden_size", "n_embd", "d_model") or 0

    def number(self, *names: str) -> int | None:
        """The first of these that config.json gives; None where it gives none of them.

        Raises:
            UsageError: it is no count.
        """
        given = {name: self.config[name] for name in names if self.config.get(name)}
        for name, value in given.items():
            if type(value) is not int or not 0 < value < 2**40:
                raise UsageError(
                    f"{self.role} model: {self.path / 'config.json'} says {name} {value!r:.40}, "
                    "which is no count; copy the model anew"
                )
            return value
        return None


def _header_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if not 2 <= size <= 100_000_000:
            raise ValueError("no header")
        header = json.loads(stream.read(size))
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    shapes = {name: tuple(entry["shape"]) for name, entry in tensors.items()}
    ends = [entry["data_offsets"][1] for entry in tensors.values()]
    if any(type(number) is not int for numbers in (ends, *shapes.values()) for number in numbers):
        raise ValueError("sizes that are no whole numbers")
    if file.stat().st_size != 8 + size + max(ends, default=0):
        raise ValueError("truncated")
    return shapes


def open_folder(
    path: str, role: str, revision: str | None = None, *, weights: bool = True
) -> ModelFolder:
    """The model at `path`: a directory, or a hub id, which is fetched.

    A directory that holds a LoRA adapter stands for the model it was trained on, merged.

    Args:
        path: the directory or hub id.
        role: student or teacher, for messages.
        revision: the commit of a hub id.
        weights: whether it must hold weights; those of a served model are at its server.

    Raises:
        UsageError: no such directory or hub id, no config.json, no safetensors weights.
        ServerError: the hub cannot be reached.
    """
    folder = locate(path, role, revision)
    if not (folder / _ADAPTER).is_file() or (folder / "config.json").is_file():
        return _whole_model(folder, path, role, weights)
    adapter = ModelFolder(folder, role).read(_ADAPTER)
    if adapter.get("peft_type") != "LORA":
        raise UsageError(
            f"{role} model: {path} is an adapter of type {adapter.get('peft_type')}; only LORA "
            "adapters are merged here, so give a whole model"
        )
    if not (folder / _ADAPTER_WEIGHTS).is_file():
        raise UsageError(f"{role} model: {path} has {_ADAPTER}, but no {_ADAPTER_WEIGHTS}")
    base = adapter.get("base_model_name_or_path")
    if not isinstance(base, str):
        raise UsageError(
            f"{role} model: {path} is a LoRA adapter whose {_ADAPTER} names no "
            "base_model_name_or_path; write the base model's path there"
        )
    part = f"{role} (base of the adapter {path})"
    below = open_folder(base, part, adapter.get("revision"))
    return ModelFolder(below.path, role, (*below.adapters, folder))


def _whole_model(folder: Path, path: str, role: str, weights: bool) -> ModelFolder:
    if not (folder / "config.json").is_file():
        inside = sorted(found.parent for found in folder.glob("*/config.json"))
        told = f"; did you mean {' or '.join(map(str, inside[:4]))}?" if inside else ""
        raise UsageError(
            f"{role} model: {path} has no config.json, so it is not a saved model{told}"
        )
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
    model = ModelFolder(folder, role)
    if (folder / _INDEX).is_file():
        _require_safetensors(model)
    return model


def _require_safetensors(model: ModelFolder) -> None:
    """Refuse an index that sends transformers to another file than weights of this folder."""
    files = model.read(_INDEX).get("weight_map", {})
    named = list(files.values()) if isinstance(files, dict) else [files]
    strange = [n for n in named if not isinstance(n, str) or "/" in n or not fnmatch(n, _WEIGHTS)]
    if strange:
        raise UsageError(
            f"{model.role} model: {model.path / _INDEX} names {strange[0]!r:.80}, and weights "
            f"stand in {_WEIGHTS} of the same folder; copy the model anew"
        )


def locate(path: str, role: str, revision: str | None = None) -> Path:
    """The directory of a model, fetched from the hub where `path` is `owner/name` and no directory.

    Raises:
        UsageError: neither a directory nor a hub id that exists.
        ServerError: the hub cannot be reached and the model is not in the local cache.
    """
    folder = usable_path(path, f"{role} model")
    if folder.is_dir():
        if revision is not None:
            raise UsageError(
                f"{role} model: {path} is a directory, and a directory has no revision "
                f"({revision}); leave it out, or move away to mean the model of that name on a hub"
            )
        return folder
    beside = _models_beside(folder)
    if not HUB_ID.fullmatch(path):
        raise UsageError(
            f"{role} model: there is no directory {path}{beside}; give the path of a downloaded "
            "model, or owner/name of one on a hub"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    wanted = path if revision is None else f"{path} at {revision}"
    try:
        return Path(
            snapshot_download(
                path, revision=revision, allow_patterns=_FETCHED, ignore_patterns=["*/*"]
            )
        )
    except HfHubHTTPError as error:  # not there, private, gated
        raise UsageError(
            f"{role} model: there is no directory {path}{beside}, and the hub refuses {wanted}: "
            f"{first_line(error)}"
        ) from None
    except HFValidationError as error:
        raise UsageError(f"{role} model: {path} is no directory and no hub id: {error}") from None
    except Exception as error:  # a network fails in every way
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise
        if beside:  # a folder was meant, and no model of a hub
            raise UsageError(
                f"{role} model: there is no directory {path}{beside}; correct the path"
            ) from None
        raise ServerError(
            f"{role} model: there is no directory {path}, {wanted} is not (wholly) in the local "
            f"cache, and the hub cannot be reached ({first_line(error)}). Fetch it where there is "
            f"a network (hf download {path}) and give its directory, or correct the path"
        ) from None


def _models_beside(path: Path) -> str:
    """The models of the folder in which `path` was looked for, if it is a folder of models."""
    names = sorted(found.parent.name for found in path.parent.glob("*/config.json"))
    return f" (models in {path.parent.absolute()}: {', '.join(names[:8])})" if names else ""


def is_hub_id(path: str) -> bool:
    """Whether `path` means a model on a hub: it is written so, and no directory is there."""
    return not usable_path(path, "model").is_dir() and HUB_ID.fullmatch(path) is not None


def pin_models(config: AnySection) -> AnySection:
    """The settings with what would move: the commit of every model that is on a hub, and the day.

    Models that are not here are fetched.

    Raises:
        TutelageError: as `locate`.
    """

    def pinned(place: str, model: LocalModelConfig) -> LocalModelConfig:
        if isinstance(model, PromptFormat) and model.today is None:
            model = model.model_copy(update={"today": date.today()})
        if not is_hub_id(model.path):
            return model
        folder = locate(model.path, place, model.revision)
        return model.model_copy(update={"revision": folder.name})

    return _with_models(config, pinned)


def keep_pinned(config: AnySection, saved: Section) -> AnySection:
    """The settings with the commits and days that `saved` recorded, where they leave them open."""
    recorded: dict[str, LocalModelConfig] = {}

    def note(place: str, model: LocalModelConfig) -> LocalModelConfig:
        recorded[place] = model
        return model

    def keep(place: str, model: LocalModelConfig) -> LocalModelConfig:
        before = recorded.get(place)
        if isinstance(before, PromptFormat) and isinstance(model, PromptFormat):
            model = model.model_copy(update={"today": model.today or before.today})
        if before is None or before.path != model.path or _COMMIT.fullmatch(model.revision or ""):
            return model
        return model.model_copy(update={"revision": before.revision})

    _with_models(saved, note)
    return _with_models(config, keep)


def _with_models(
    section: AnySection,
    change: Callable[[str, LocalModelConfig], LocalModelConfig],
    prefix: str = "",
) -> AnySection:
    """The section with every model in it replaced by what `change` makes of (place, model)."""

    def changed(place: str, value: Any) -> Any:
        if isinstance(value, LocalModelConfig):
            return change(place, value)
        if isinstance(value, Section):
            return _with_models(value, change, f"{place}.")
        if isinstance(value, dict):
            return {key: changed(f"{place}.{key}", part) for key, part in value.items()}
        return value

    updates = {
        name: changed(prefix + name, getattr(section, name)) for name in type(section).model_fields
    }
    return section.model_copy(update=updates)
