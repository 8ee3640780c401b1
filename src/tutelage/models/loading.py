"""From a folder or the hub to a model in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.import_utils import is_flash_attn_2_available

from tutelage.config import LocalModelConfig, Reference, StudentConfig
from tutelage.errors import MachineError, UsageError, first_line
from tutelage.models import lora
from tutelage.models.anatomy import quiet_transformers, stop_ids
from tutelage.models.checkpoints import open_folder
from tutelage.models.decoding import decode
from tutelage.models.local import LocalModel
from tutelage.models.pages import keep_pages
from tutelage.ops.products import speed_up
from tutelage.types import SamplingParams


def load_model(settings: LocalModelConfig, role: str) -> LocalModel:
    """The model at `settings.path`, from safetensors, never running code from its folder.

    Raises:
        UsageError: no such directory, no weights, an architecture that cannot be decoded here.
        MachineError: a device or an extra that is not there.
        ServerError: a hub that cannot be reached.
    """
    folder = open_folder(settings.path, role, settings.revision)
    device = choose_device(settings.device, role)
    if (folder.path / "generation_config.json").exists():
        folder.read("generation_config.json")  # transformers would do without its stop ids
    attention = {}
    if settings.attention != "auto":
        attention["attn_implementation"] = settings.attention
    if settings.attention == "flash_attention_2" and not is_flash_attn_2_available():
        raise MachineError(  # transformers would fetch a compiled kernel from the hub instead
            f"{role}.attention is flash_attention_2, but there is no GPU with the package "
            "flash-attn (2.3.3 or later); use attention: sdpa"
        )
    try:
        with quiet_transformers():
            loaded: Any = AutoModelForCausalLM.from_pretrained(  # nosec B615 # local
                folder.path,
                dtype=getattr(torch, settings.dtype),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                **attention,
            )
    except Exception as error:  # damaged files surface in every way
        raise UsageError(
            f"{role} model {settings.path} cannot be loaded: {first_line(error)}"
        ) from None
    model, loading = cast(tuple[PreTrainedModel, dict[str, Any]], loaded)
    if mismatched := sorted(loading["mismatched_keys"]):
        name, stored, expected = mismatched[0]
        raise UsageError(
            f"{role} model {settings.path}: {len(mismatched)} weights have other shapes than "
            f"config.json makes them (first: {name} is stored as {list(stored)}, the config makes "
            f"it {list(expected)}); config.json and weights do not belong together, so copy both "
            "from one model"
        )
    if missing := sorted(loading["missing_keys"]):
        raise UsageError(
            f"{role} model {settings.path} lacks {len(missing)} weights (first: {missing[0]}); "
            "transformers would fill them with random numbers"
        )
    for adapter in folder.adapters:
        model = lora.merge_adapter(model, adapter, role)
    tokenizer = load_tokenizer(settings, role)
    model.to(device)  # type: ignore[arg-type]
    speed_up(model)
    keep_pages()
    ignored = tuple(sorted(loading["unexpected_keys"]))
    local = LocalModel(model=model.eval(), tokenizer=tokenizer, ignored=ignored)
    require_decodable(local, f"{role} model {settings.path}")
    return local


@torch.no_grad()
def require_decodable(local: LocalModel, name: str) -> None:
    """Refuse a model whose steps over its cache are not its view of the whole sequence.

    A few tokens are decoded as `sample` does it: prompts of two lengths, one of them twice, and a
    row that ends early.

    Raises:
        UsageError: it cannot be decoded, or its log-probabilities differ.
    """
    kind = type(local.model).__name__
    params = SamplingParams(max_new_tokens=3, temperature=1.0)
    prompts = [tuple(i % local.vocabulary for i in ids) for ids in ((1,), (1,), (2, 3, 4))]
    draws = torch.full((3, 3), 0.5, device=local.device)
    try:
        _, one, other = decode(
            local.model, prompts, draws, params, [1, 3, 3], frozenset(), local.vocabulary
        )
        found = torch.tensor([*one.logprobs, *other.logprobs])
        expected = torch.cat(
            [_logprobs_of(local, prompts[1], one.ids), _logprobs_of(local, prompts[2], other.ids)]
        )
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UsageError(
            f"{name} is a {kind}, which cannot be decoded here ({first_line(error)}): sampling "
            "keeps the past in a transformers cache, row by row; use a model that has one"
        ) from None
    # Weights that are NaN are the guards' affair, once a step shows them.
    distance = float((found - expected).abs().nan_to_num().max())
    if distance > (1e-2 if local.model.dtype == torch.float32 else 1.0):
        raise UsageError(
            f"{name} is a {kind}, whose steps over its cache are not its view of the whole "
            f"sequence: log-probabilities of the same tokens differ by {distance:.3g} nats, so it "
            "would be trained on samples of another model; use another architecture or attention"
        )


def _logprobs_of(local: LocalModel, prompt: tuple[int, ...], ids: tuple[int, ...]) -> Tensor:
    """Log-probabilities of `ids` after `prompt`, read in one pass without padding."""
    sequence = torch.tensor([prompt + ids], device=local.device)
    logits: Tensor = local.model(input_ids=sequence, use_cache=False).logits
    logits = logits[0, len(prompt) - 1 : -1]
    logprobs = logits[:, : local.vocabulary].float().log_softmax(-1)
    return logprobs.gather(-1, sequence[0, len(prompt) :, None]).squeeze(-1).cpu()


def load_student(
    settings: StudentConfig, *, precision: str, seed: int, checkpoint: str | None = None
) -> LocalModel:
    """The model that learns, as its checkpoint left it where there is one.

    Raises:
        TutelageError: as `load_model`, and what LoRA or gradient checkpointing cannot do with it.
    """
    if settings.lora is None and checkpoint is not None:
        settings = settings.model_copy(update={"path": checkpoint, "revision": None})
    student = load_model(settings, "student")
    if settings.lora is not None:
        student.adapter = lora.add_adapter(student.model, settings.lora, settings, seed)
        if checkpoint is not None:
            lora.restore_adapter(student.adapter, Path(checkpoint))
    if settings.gradient_checkpointing:
        checkpoint_layers(student.model)
        student.checkpointed = True
    if precision == "bfloat16":
        student.autocast = True
        keep_head_float32(student.model)
    return student


def load_reference(
    setting: Reference,
    name: str,
    initial: StudentConfig,
    student: LocalModel,
) -> LocalModel:
    """A frozen model that an objective refers to; it computes in the student's precision.

    `initial`, the student before the run, needs no second copy where the student is adapted.

    Raises:
        TutelageError: as `load_model`.
    """
    if setting == "initial" and student.adapter is not None:
        return student.without_adapter()
    model = load_model(initial if setting == "initial" else setting, f"objective.{name}")
    model.model.requires_grad_(False)
    if student.autocast:
        model.autocast = True
        keep_head_float32(model.model)
    return model


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Let every layer keep its input alone and run a second time in the backward pass.

    transformers has the same for training mode only, where dropout would be active.

    Raises:
        UsageError: the architecture is not made of such layers.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise UsageError(
            f"student.gradient_checkpointing: a {type(model).__name__} has no layers that can be "
            "run a second time; leave it out, and lower optimizer.micro_batch_size instead"
        )
    for layer in layers:
        layer.forward = _run_again_in_backward(layer.forward)


def _run_again_in_backward(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*inputs: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*inputs, **named)
        # Nothing in a layer is random, so there is no generator to restore.
        return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False, **named)

    return run


def keep_head_float32(model: PreTrainedModel) -> None:
    """Let the output head compute as its weights are, under autocast too.

    Sampling and scoring then read the same logits, without the rounding of bfloat16.
    """
    head = model.get_output_embeddings()
    if head is None:
        return
    forward = head.forward

    def run(hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return cast(Tensor, forward(hidden.to(head.weight.dtype)))

    head.forward = run


def choose_device(name: str, role: str) -> torch.device:
    """The device of that name; `auto` takes a GPU where there is one.

    Raises:
        UsageError: no device is called so.
        MachineError: it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(
            f"{role}.device {name!r} does not exist; use cpu, cuda, cuda:1 or auto"
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MachineError(f"{role}.device is {name}, but torch sees no GPU; use device: cpu")
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise MachineError(
            f"{role}.device {name} cannot be used: {first_line(error)}; use device: auto"
        ) from None
    return device


def load_tokenizer(settings: LocalModelConfig, role: str) -> PreTrainedTokenizerBase:
    """The tokenizer at `settings.path`.

    Raises:
        UsageError: the folder holds none.
    """
    folder = open_folder(settings.path, role, settings.revision, weights=False)
    try:
        with quiet_transformers():
            loaded: Any = AutoTokenizer.from_pretrained(  # nosec B615 # local
                folder.tokenizer, local_files_only=True, trust_remote_code=False
            )
            tokenizer = cast(PreTrainedTokenizerBase, loaded)
            tokenizer.decode(tokenizer("1")["input_ids"])  # damage may show in use alone
            return tokenizer
    except Exception as error:  # damaged files surface in every way
        raise UsageError(
            f"{role} model: {settings.path} has no tokenizer that can be loaded "
            f"({first_line(error)}); "
            "save one next to the weights"
        ) from None


def stop_ids_of_folder(
    settings: LocalModelConfig, role: str, tokenizer: PreTrainedTokenizerBase
) -> frozenset[int]:
    """`stop_ids` of a model whose weights are not loaded.

    Raises:
        UsageError: the folder's config cannot be read.
    """
    folder = open_folder(settings.path, role, settings.revision, weights=False)
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(  # nosec B615 # local
                folder.path, local_files_only=True, trust_remote_code=False
            )
            if (folder.path / "generation_config.json").exists():
                generation = GenerationConfig.from_pretrained(  # nosec B615 # local
                    folder.path, local_files_only=True
                )
            else:
                generation = GenerationConfig.from_model_config(config)
    except Exception as error:  # damaged files surface in every way
        raise UsageError(
            f"{role} model {settings.path} cannot be read: {first_line(error)}"
        ) from None
    return stop_ids(generation, config, tokenizer)
