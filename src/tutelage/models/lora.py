"""Low-rank adapters, through peft.

The network stays the object that transformers loaded; its layers gain additions.
peft is imported here alone, and late: it takes seconds.
"""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from tutelage.config import LoRA, StudentConfig
from tutelage.errors import MachineError, UsageError, first_line

WEIGHTS = "adapter_model.safetensors"
_NAME = "default"  # peft's own name of the only adapter


def add_adapter(model: PreTrainedModel, settings: LoRA, base: StudentConfig, seed: int) -> Any:
    """Put fresh additions into the model's layers and freeze everything else.

    They start at zero effect; their random half is drawn from the seed.

    Returns:
        peft's view of the model, for saving.

    Raises:
        UsageError: layers that are not there, or whose weights another part shares.
    """
    peft = _peft()
    targets = settings.target_modules
    configuration = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
    _require_separate(model, targets)
    with torch.random.fork_rng(), _quiet():
        torch.manual_seed(seed)
        try:
            adapter = peft.get_peft_model(model, configuration)
        except ValueError as error:
            raise UsageError(
                f"student.lora.target_modules {_listed(targets)}: {error} Linear layers of this "
                f"model are called {', '.join(linear_names(model))}"
            ) from None
    # The name by which the user knows the model, not the place where a hub's copy lies.
    configuration = adapter.peft_config[_NAME]
    configuration.base_model_name_or_path = base.path
    configuration.revision = base.revision
    adapter.eval()
    return adapter


def restore_adapter(adapter: Any, folder: Path) -> None:
    """Load the additions that `save_adapter` wrote.

    Raises:
        UsageError: they belong to other layers.
    """
    with _quiet():
        loaded = _peft().set_peft_model_state_dict(adapter, load_file(folder / WEIGHTS))
    missing = [name for name in loaded.missing_keys if "lora_" in name]
    if missing or loaded.unexpected_keys:
        first = [*missing, *loaded.unexpected_keys][0]
        raise UsageError(f"the adapter in {folder} is of other layers than these (first: {first})")


def save_adapter(adapter: Any, folder: Path) -> None:
    """adapter_config.json and adapter_model.safetensors, as peft reads them."""
    with _quiet():
        adapter.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # an empty form


def merge_adapter(model: PreTrainedModel, folder: Path, role: str) -> PreTrainedModel:
    """The model with a saved adapter added to its weights for good.

    Raises:
        UsageError: an adapter of another model.
    """
    with _quiet():
        try:
            adapter = _peft().PeftModel.from_pretrained(model, folder, torch_device="cpu")
            return cast(PreTrainedModel, adapter.merge_and_unload(safe_merge=True))
        except Exception as error:  # peft trips over a damaged config in every way
            raise UsageError(
                f"{role} model: the adapter {folder} cannot be merged into its base model: "
                f"{first_line(error)}"
            ) from None


@contextlib.contextmanager
def switched_off(adapter: Any) -> Iterator[None]:
    """Inside, the network is the one the adapter was added to."""
    adapter.base_model.disable_adapter_layers()
    try:
        yield
    finally:
        adapter.base_model.enable_adapter_layers()


def adapted_weight(layer: Any) -> Tensor | None:
    """The layer's weight with its addition, differentiable; None where it has no addition."""
    if not hasattr(layer, "get_delta_weight"):
        return None
    return cast(Tensor, layer.get_base_layer().weight + layer.get_delta_weight(_NAME))


@torch.no_grad()
def merged_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The adapted model's weights as its base model names them, additions included."""
    weights: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        layer, _, last = name.rpartition(".")
        if not layer.endswith(".base_layer"):
            if ".lora_" not in name:
                weights[name] = tensor
            continue
        layer = layer.removesuffix(".base_layer")
        merged = adapted_weight(model.get_submodule(layer)) if last == "weight" else None
        weights[f"{layer}.{last}"] = tensor if merged is None else merged
    return weights


def linear_names(model: PreTrainedModel) -> list[str]:
    """Last names of the model's layers that can be adapted."""
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"
        }
    )


def _require_separate(model: PreTrainedModel, targets: str | tuple[str, ...]) -> None:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if isinstance(targets, str) or getattr(head, "weight", None) is not embedding.weight:
        return
    shared = {
        name
        for name, module in model.named_modules()
        if module in (embedding, head) and any(_matches(name, target) for target in targets)
    }
    if shared:
        raise UsageError(
            f"student.lora.target_modules names {', '.join(sorted(shared))}, but in this model "
            "embedding and head are one weight: an addition to one could not be merged without "
            "changing the other. Leave it out; the other layers suffice"
        )


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _listed(targets: str | tuple[str, ...]) -> str:
    return targets if isinstance(targets, str) else ", ".join(targets)


def _peft() -> Any:
    with _quiet():
        try:
            import peft
        except ImportError as error:
            raise MachineError(f"LoRA needs peft ({error}); pip install 'tutelage[lora]'") from None
    return peft


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # peft calls names that transformers deprecates, and notes what it mends by itself.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
