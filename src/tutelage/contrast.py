"""Is it what a self-teacher is shown, or how it then writes? Its scores beside a wrong context.

A teacher that reads the answer to *another* question keeps the style that any context
brings, and loses what this one tells. What it still pulls towards is style (2608.09228);
where it pulls early in the answer, before the work is done, the context leaks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tutelage.gradient import Models
from tutelage.metrics import TokenTable
from tutelage.models.local import LocalModel
from tutelage.types import Rollout

Measure = Callable[[Models, Sequence[Rollout]], tuple[TokenTable, Tensor]]


def contrast(
    models: Models,
    rollouts: Sequence[Rollout],
    others: Mapping[str, tuple[int, ...]],
    table: TokenTable,
    measure: Measure,
) -> dict[str, float]:
    """contrast/* of rollouts; NaN where a share has no denominator.

    Args:
        models: the student and its self-teacher.
        rollouts: under the teacher's own context.
        others: what the teacher reads of each question with another's context, by prompt id.
        table: metrics of these rollouts under the teacher's own context.
        measure: per-token metrics of rollouts, and their rows.
    """
    teacher = models.teacher
    assert isinstance(teacher, LocalModel)
    told = [
        (r, replace(r, teacher_prompt_ids=others[r.prompt.id]))
        for r in rollouts
        if r.prompt.id in others
    ]
    elsewhere, rows = measure(models, [other for _, other in told])
    both = Models(student=teacher, teacher=teacher, references={})
    apart, _ = measure(
        both, [replace(o, prompt_ids=r.teacher_prompt_ids or r.prompt_ids) for r, o in told]
    )
    context = apart["kl/reverse"].double()
    place = torch.cat([torch.arange(n) for n in torch.bincount(rows).tolist()])
    is_early = place < torch.bincount(rows)[rows] / 2
    own, other = (t["kl/reverse"].double().mean().item() for t in (table, elsewhere))
    total = context.sum().item()
    return {
        "contrast/kl_other": other,
        "contrast/style_share": other / own if own > 0 else float("nan"),
        "contrast/context": context.mean().item(),
        "contrast/context_early": context[is_early].sum().item() / total
        if total > 0
        else float("nan"),
    }
