"""Our losses in verl's registry, and our verdicts as its rewards; imported inside of verl 0.9.

verl computes a top-k loss where the logits are, by a function that its registry cannot name. So
that one function is replaced here by one that asks for the mode first, and hands all modes of
verl's own on.
"""

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from tutelage.config import DataConfig, Sampled, TopK, section
from tutelage.data.verify import make_verifier, verifier_settings
from tutelage.objective import token_losses
from tutelage.types import Prompt, TokenScores

LOSS_MODE = "tutelage"
_STRATEGIES = ("fsdp", "fsdp2", "veomni")  # whose logits pass through the replaced function


def register(objective: Mapping[str, Any]) -> None:
    """Make `distillation.distillation_loss.loss_mode=tutelage` this objective."""
    from verl.trainer.distillation import losses
    from verl.trainer.distillation.fsdp import losses as at_logits

    kind: type[Sampled] | type[TopK] = Sampled if objective["type"] == "sampled" else TopK
    settings = section(kind, objective, "the exported objective")
    sampled = isinstance(settings, Sampled)
    enter = losses.register_distillation_loss(
        losses.DistillationLossSettings(
            names=[LOSS_MODE], use_estimator=sampled, use_topk=not sampled
        )
    )
    if isinstance(settings, Sampled):
        enter(partial(_sampled, settings))
    else:
        enter(_from_logits)
        at_logits.compute_forward_kl_topk = partial(
            _at_logits, settings, at_logits.compute_forward_kl_topk
        )


def scorer(data: Mapping[str, Any]) -> Callable[..., float]:
    """A `compute_score` for verl: 1 right, 0 wrong, and 0 where it cannot be told."""
    settings = verifier_settings(section(DataConfig, data))
    verify = None if settings is None else make_verifier(settings)

    def compute_score(
        data_source: str,
        solution_str: str,
        ground_truth: str | None,
        extra_info: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> float:
        told = extra_info or {}
        prompt = Prompt(
            id=str(told.get("index", "")),
            text=told.get("question") or "",
            answer=ground_truth,
            metadata=json.loads(told.get("metadata") or "{}"),
        )
        return (verify(prompt, solution_str) if verify else None) or 0.0

    return compute_score


def top_k_losses(objective: TopK, logits: Tensor, ids: Tensor, teacher: Tensor) -> Tensor:
    """Losses [N] of the teacher's own top k, differentiable in the logits.

    Args:
        objective: with support `teacher`.
        logits: float [N, V] of the student.
        ids: int64 [N, k], the teacher's likely tokens.
        teacher: float [N, k], their log q. Rows that are no distribution, as verl pads them, give
            0 and no gradient.
    """
    logits = logits.float()
    student = logits.gather(-1, ids) - logits.logsumexp(-1, keepdim=True)
    teacher = teacher.float()
    known = (teacher.exp().sum(-1, keepdim=True) <= 1.001) & teacher.isfinite().all(-1, True)
    nothing = -math.log(2 * ids.shape[-1])
    student, teacher = (torch.where(known, side, nothing) for side in (student, teacher))
    places = torch.arange(ids.shape[-1], device=ids.device).expand_as(ids)
    scores = TokenScores(
        sampled=teacher[:, 0],
        ids=places,
        logprobs=teacher,
        mask=torch.ones_like(ids, dtype=torch.bool),
    )
    losses = token_losses(objective, student, scores, places[:, 0]).losses
    return torch.where(known.squeeze(-1), losses, 0.0)


def _at_logits(
    objective: TopK,
    own: Callable[..., dict[str, Tensor]],
    student_logits: Tensor,
    teacher_topk_log_probs: Tensor,
    teacher_topk_ids: Tensor,
    config: Any,
    data_format: str,
) -> dict[str, Tensor]:
    """What verl asks of every position [1, N]; its own masses and overlaps stay as they are."""
    from verl.utils.ulysses import get_ulysses_sequence_parallel_world_size, slice_input_tensor

    given = (student_logits, teacher_topk_log_probs, teacher_topk_ids, config, data_format)
    if config.distillation_loss.loss_mode != LOSS_MODE:
        return own(*given)
    with torch.no_grad():
        outputs = own(*given)
    teacher = teacher_topk_log_probs.values().unsqueeze(0)
    ids = teacher_topk_ids.values().unsqueeze(0)
    if get_ulysses_sequence_parallel_world_size() > 1:
        teacher, ids = slice_input_tensor(teacher, dim=1), slice_input_tensor(ids, dim=1)
    losses = top_k_losses(
        objective, student_logits.flatten(0, 1), ids.flatten(0, 1).long(), teacher.flatten(0, 1)
    )
    return {**outputs, "distillation_losses": losses.view(student_logits.shape[:2])}


def _from_logits(
    config: Any, distillation_config: Any, model_output: Any, data: Any
) -> tuple[Tensor, dict[str, Any]]:
    """The losses [B, T] that `_at_logits` computed; verl's own would clamp them at 0."""
    from verl.trainer.distillation import losses
    from verl.workers.utils.padding import no_padding_2_padding

    if config.strategy not in _STRATEGIES:
        raise ValueError(
            f"loss_mode {LOSS_MODE} with a top-k objective runs with the strategies "
            f"{', '.join(_STRATEGIES)}, not {config.strategy}; export objective.type sampled"
        )
    _, metrics = losses.compute_forward_kl_topk(config, distillation_config, model_output, data)
    found: Tensor = no_padding_2_padding(model_output["distillation_losses"], data)
    return found, metrics


def _sampled(
    objective: Sampled, config: Any, distillation_config: Any, model_output: Any, data: Any
) -> tuple[Tensor, dict[str, Any]]:
    """Losses [B, T] of the sampled tokens, whose gradient is the policy gradient."""
    from verl.utils.metric import AggregationType, Metric
    from verl.workers.utils.padding import no_padding_2_padding

    student = cast(Tensor, no_padding_2_padding(model_output["log_probs"], data)).float()
    teacher = cast(Tensor, no_padding_2_padding(data["teacher_logprobs"], data))
    teacher = teacher.squeeze(-1).float()
    mask = data["response_mask"]
    mask = (mask.to_padded_tensor(0) if mask.is_nested else mask).bool()
    only = torch.zeros(student.numel(), dtype=torch.long, device=student.device)
    flat = token_losses(objective, student.reshape(-1, 1), teacher.reshape(-1, 1), only)
    gap = (student.detach() - teacher)[mask].abs().mean()
    return flat.losses.view_as(student), {
        "distillation/abs_loss": Metric(AggregationType.MEAN, gap)
    }
