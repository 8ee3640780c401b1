"""Models in this process, through transformers."""

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
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
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging as transformers_logging
from transformers.utils.import_utils import is_flash_attn_2_available

from tutelage.config import LocalModelConfig, Reference, StudentConfig
from tutelage.errors import MachineError, UsageError
from tutelage.models import lora
from tutelage.models.checkpoints import open_folder
from tutelage.models.decoding import decode
from tutelage.models.memory import halve_until_it_fits
from tutelage.models.prefixes import can_share, shared_prompts, shared_states
from tutelage.models.tokens import token_text
from tutelage.ops.logprobs import log_softmax_
from tutelage.ops.products import speed_up
from tutelage.ops.projection import Head
from tutelage.ops.sampling import uniforms
from tutelage.types import Batch, RenderedPrompt, Rollout, SamplingParams

Draw = tuple[RenderedPrompt, int]
"""A sample to draw: of which prompt, and which of its samples."""


def draws_of(
    prompts: Sequence[RenderedPrompt],
    group_size: int,
    only: Callable[[str, int], bool] = lambda prompt_id, index: True,
) -> list[Draw]:
    """`group_size` samples of each prompt, prompt by prompt, without those `only` leaves out."""
    return [
        (prompt, index)
        for prompt in prompts
        for index in range(group_size)
        if only(prompt.prompt.id, index)
    ]


def by_length(draws: Sequence[Draw]) -> list[int]:
    """Places in the order of decoding: neighbours in length share a batch, so little is padding."""
    return sorted(range(len(draws)), key=lambda i: len(draws[i][0].ids))


@dataclass(frozen=True, slots=True)
class LocalJudgement:
    """A model's view of a batch's states: hidden states, made log-probabilities chunk by chunk."""

    hidden: Tensor
    head: Head

    def at(self, rows: slice, student: Tensor) -> Tensor:
        """log q [n, V] of these states, in the student's precision or its own, the better one."""
        logits = self.head.logits(self.hidden[rows])
        return log_softmax_(logits.to(torch.promote_types(logits.dtype, student.dtype)))


@dataclass
class LocalModel:
    """A causal language model with its tokenizer; a `Sampler` and a `Scorer`."""

    model: PreTrainedModel
    """The network, in evaluation mode: dropout would make the sampled policy and the
    trained one differ."""
    tokenizer: PreTrainedTokenizerBase
    """Its tokenizer."""
    temperature: float = 1.0
    """Temperature of the log-probabilities it scores with."""
    vocabulary: int = 0
    """Token ids in use: logits beyond them are padding of the head."""
    batch_size: int = 256
    """Rollouts decoded at once."""
    policy_step: int = 0
    """Optimizer steps the weights have taken."""
    ignored: tuple[str, ...] = ()
    """Weights in its files that the architecture has no place for."""
    autocast: bool = False
    """Layers compute in bfloat16; weights and logits stay as they are."""
    adapter: Any = None
    """peft's view of the network, where LoRA additions are in it."""
    adapted: bool = True
    """False: the additions are switched off, and this is the model they were added to."""
    checkpointed: bool = False
    """Layers run a second time in the backward pass."""
    sharded: bool = False
    """Each rank of the run holds a part of the weights; see `models/sharded.py`."""
    gatherings: int = 0
    """Above 0: the parts are gathered at the moment."""

    def __post_init__(self) -> None:
        self.vocabulary = self.vocabulary or head_rows(self.model)
        self.stop_ids = stop_ids(self.model.generation_config, self.model.config, self.tokenizer)
        with contextlib.nullcontext() if self.adapter is None else lora.switched_off(self.adapter):
            self.raw_head = find_head(self.model)
        self.shares_prompts = self.raw_head.weight is not None and can_share(self.model)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def head(self) -> Head:
        """How `hidden` becomes logits at this model's temperature."""
        weight, bias = self.raw_head.weight, self.raw_head.bias
        if self.sharded and weight is not None:  # the gathered ones, after a forward pass
            output: Any = self.model.get_output_embeddings()
            weight, bias = output.weight, getattr(output, "bias", None)
        if weight is not None and self.adapter is not None and self.adapted:
            addition = lora.adapted_weight(self.model.get_output_embeddings())
            weight = weight if addition is None else addition
        return replace(
            self.raw_head,
            weight=weight,
            bias=bias,
            temperature=self.temperature,
            vocabulary=self.vocabulary,
        )

    def hidden(self, batch: Batch) -> Tensor:
        """Hidden states [N, H] at the states of the scored tokens, with gradient where enabled."""
        with self._as_set():
            picked = self._shared_states(batch)
            if picked is None:
                picked = self._states(batch)[batch.loss_mask.to(self.device)]
        if self.autocast and self.raw_head.weight is not None:
            picked = picked.to(self.raw_head.weight.dtype)
        return picked

    def _states(self, batch: Batch) -> Tensor:
        """The last hidden states [B, T, H], or the logits where no head is known."""
        inputs = {"input_ids": batch.input_ids.to(self.device)}
        if batch.position_ids is None:
            inputs["attention_mask"] = batch.attention_mask.to(self.device)
        else:
            inputs["position_ids"] = batch.position_ids.to(self.device)
        if self.raw_head.weight is None:
            states = self.model(**inputs, use_cache=False).logits
        elif self.sharded:
            states = cast(Any, self.model).last_states(**inputs, use_cache=False)
        else:
            states = self.model.base_model(**inputs, use_cache=False).last_hidden_state
        return cast(Tensor, states)

    def _shared_states(self, batch: Batch) -> Tensor | None:
        """The hidden states [N, H], where rows share prompts and the model allows it."""
        twice = self.checkpointed and torch.is_grad_enabled()  # what is read twice is kept twice
        if self.sharded or twice or not self.shares_prompts:
            return None
        shared = shared_prompts(batch)
        return None if shared is None else shared_states(self.model, shared)

    @contextlib.contextmanager
    def _as_set(self) -> Iterator[None]:
        """Inside, the network computes as `autocast` and `adapted` say."""
        with contextlib.ExitStack() as stack:
            if self.adapter is not None and not self.adapted:
                stack.enter_context(lora.switched_off(self.adapter))
            if self.autocast:
                stack.enter_context(torch.autocast(self.device.type, dtype=torch.bfloat16))
            yield

    def state_logprobs(self, batch: Batch) -> Tensor:
        """log p [N, V] at the states of the scored tokens, without gradient in the head."""
        return self.head.logits(self.hidden(batch)).log_softmax(-1)

    @property
    def context(self) -> int | None:
        """Tokens it reads; None where its config does not say."""
        return context_length(self.model.config)

    @torch.no_grad()
    def judge(self, batch: Batch, propose: Callable[[int], Tensor]) -> LocalJudgement:
        """Its view of a batch's states; nothing need be proposed to it."""
        return LocalJudgement(self.hidden(batch), self.head)

    @torch.no_grad()
    def score(self, batch: Batch) -> Tensor:
        """Log-probabilities [N, V] at the states of the N scored tokens, without gradient."""
        return self.state_logprobs(batch)

    def sample(
        self,
        prompts: Sequence[RenderedPrompt],
        params: SamplingParams,
        *,
        group_size: int = 1,
        seed: int,
        step: int,
        only: Callable[[str, int], bool] = lambda prompt_id, index: True,
    ) -> list[Rollout]:
        """`group_size` rollouts of each prompt, prompt by prompt."""
        draws = draws_of(prompts, group_size, only)
        rollouts: dict[int, Rollout] = {}
        order = by_length(draws)

        def sample_next(size: int) -> None:
            places = order[len(rollouts) : len(rollouts) + size]
            rollouts.update(
                zip(places, self.draw([draws[i] for i in places], params, seed, step), strict=True)
            )

        def told(size: int, reason: str) -> None:
            self.batch_size = size

        while len(rollouts) < len(draws):
            size = min(self.batch_size, len(draws) - len(rollouts))
            halve_until_it_fits(sample_next, size, told, "Lower rollout.max_new_tokens.")
        return [rollouts[i] for i in range(len(draws))]

    def draw(
        self, draws: Sequence[Draw], params: SamplingParams, seed: int, step: int
    ) -> list[Rollout]:
        """Rollouts of these samples, decoded as one batch."""
        uniform = torch.stack(
            [
                torch.from_numpy(
                    uniforms(params.max_new_tokens, seed, step, prompt.prompt.id, index)
                )
                for prompt, index in draws
            ]
        )
        with self._as_set():
            completions = decode(
                self.model,
                [prompt.ids for prompt, _ in draws],
                uniform.to(self.device),
                params,
                [prompt.max_new_tokens or params.max_new_tokens for prompt, _ in draws],
                self.stop_ids,
                self.vocabulary,
            )
        return [
            Rollout(
                prompt=prompt.prompt,
                index=index,
                prompt_ids=prompt.ids,
                teacher_prompt_ids=prompt.teacher_ids,
                completion_ids=completion.ids,
                logprobs=completion.logprobs,
                finish_reason=completion.finish_reason,
                text=self.decode_text(completion.ids),
                policy_step=self.policy_step,
            )
            for (prompt, index), completion in zip(draws, completions, strict=True)
        ]

    def save(self, folder: Path) -> None:
        """What is trained, as transformers or peft saves it, and the tokenizer."""
        with quiet_transformers():
            if self.adapter is None:
                self.model.save_pretrained(folder)
            else:
                lora.save_adapter(self.adapter, folder)
            self.tokenizer.save_pretrained(folder)

    def merged_weights(self) -> dict[str, Tensor]:
        """Every weight by the name it has without an adapter, additions included."""
        return self.model.state_dict() if self.adapter is None else lora.merged_weights(self.model)

    def without_adapter(self) -> "LocalModel":
        """The model that the adapter was added to; it shares the weights with this one."""
        base = copy.copy(self)
        base.adapted = False
        return base

    def decode_text(self, ids: Iterable[int]) -> str:
        """Token ids as text, without special tokens."""
        return decode_text(self.tokenizer, ids)

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """Each token id as the text a reader sees, special tokens included."""
        return [token_text(self.tokenizer, i) for i in ids]


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
            f"{role} model {settings.path} cannot be loaded: {_first_line(error)}"
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
            f"{name} is a {kind}, which cannot be decoded here ({_first_line(error)}): sampling "
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
            f"{role}.device {name} cannot be used: {_first_line(error)}; use device: auto"
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
            f"({_first_line(error)}); "
            "save one next to the weights"
        ) from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else repr(error)


def context_length(config: PretrainedConfig) -> int | None:
    """Tokens a model reads; None where its config does not say."""
    text: Any = config.get_text_config()
    names = ("max_position_embeddings", "n_positions", "max_seq_len")
    return next((size for name in names if (size := getattr(text, name, None))), None)


def head_rows(model: PreTrainedModel) -> int:
    """Rows of the output head, padding included."""
    head = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    return int(weight.shape[0]) if weight is not None else int(model.config.vocab_size)


@torch.no_grad()
def find_head(model: PreTrainedModel) -> Head:
    """How the model's last hidden states become its logits.

    What the config says of caps and scales is tried on a few tokens; a model that
    does something else gets a head that takes its logits as they are.
    """
    config: Any = model.config
    scale = getattr(config, "logit_scale", None) or 1 / (
        getattr(config, "logits_scaling", None) or 1
    )
    embedding: Any = model.get_output_embeddings()
    if embedding is None:
        return Head(weight=None)
    head = Head(
        weight=embedding.weight,
        bias=getattr(embedding, "bias", None),
        scale=float(scale),
        softcap=getattr(config, "final_logit_softcapping", None),
    )
    inputs = {"input_ids": torch.arange(4, device=model.device).unsqueeze(0) % head_rows(model)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    expected = model(**inputs, use_cache=False).logits[0].float()
    try:
        states = model.base_model(**inputs, use_cache=False).last_hidden_state[0]
        found = head.logits(states).float()
    except (AttributeError, RuntimeError, TypeError):
        return Head(weight=None)
    tolerance = 1e-4 if states.dtype == torch.float32 else 2e-2
    # Weights that are NaN are the guards' affair, once a step shows them.
    largest = float(expected.abs().nan_to_num().max())
    agree = found.shape == expected.shape and torch.allclose(
        found, expected, rtol=tolerance, atol=tolerance * largest, equal_nan=True
    )
    return head if agree else Head(weight=None)


def decode_text(
    tokenizer: PreTrainedTokenizerBase, ids: Iterable[int], special: bool = False
) -> str:
    """Token ids as text, without special tokens unless they are wanted."""
    return cast(str, tokenizer.decode(list(ids), skip_special_tokens=not special))


def stop_ids(*configs: object) -> frozenset[int]:
    """Ids that end a completion: those of the generation config, the config and the tokenizer.

    Raises:
        UsageError: something else than token ids stands there.
    """
    found: set[int] = set()
    for value in (getattr(config, "eos_token_id", None) for config in configs):
        ids = value if isinstance(value, list | tuple) else () if value is None else (value,)
        if any(type(i) is not int for i in ids):
            raise UsageError(
                f"the model's eos_token_id is {value!r:.80}, and token ids are whole numbers; mend "
                "its generation_config.json, config.json or tokenizer"
            )
        found |= set(ids)
    return frozenset(found)


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
            f"{role} model {settings.path} cannot be read: {_first_line(error)}"
        ) from None
    return stop_ids(generation, config, tokenizer)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' own progress bars and notes, which would mix with ours."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
