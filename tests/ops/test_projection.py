"""The chunked sweep equals dense autograd, for every objective, head and chunk size."""

import itertools

import numpy as np
import pytest
import torch

from tutelage import config as c
from tutelage.objective import brake_gradient, logit_gradient, target_logprobs, token_losses
from tutelage.ops.projection import Head, chunks, sweep
from tutelage.types import TokenScores

ROWS, HIDDEN, TEACHER_HIDDEN, VOCABULARY, PADDED = 23, 6, 8, 11, 14

OBJECTIVES = [
    c.Full(),
    c.Full(divergence=c.JSD(beta=0.3)),
    c.Full(divergence=c.Skew(direction="forward")),
    c.Full(divergence=c.Mix(forward=0.4, ramp=c.EntropyRamp(low=0.5, high=2.0))),
    c.Sampled(),
    c.Sampled(divergence=c.ForwardKL(), bound=0.7),
    c.Sampled(baseline=c.KLBaseline()),
    c.Sampled(baseline=c.KLBaseline(k=3), divergence=c.JSD()),
    c.TopK(k=3),
    c.TopK(k=3, support="union"),
    c.TopK(k=3, support="union", divergence=c.Power(alpha=2.0)),
    c.TopK(k=3, support="teacher", divergence=c.ForwardKL()),
    c.TopK(k=3, support="intersection", tail=c.Renormalise()),
    c.TopK(k=3, support="symmetric_difference", tail=c.ReferenceCode()),
    c.TopK(k=4, tail=c.Drop(), divergence=c.Mix(ramp=c.EntropyRamp())),
]
HEADS = {
    "plain": {},
    "bias": {"with_bias": True},
    "softcap": {"softcap": 1.5},
    "scale and temperature": {"scale": 0.5, "temperature": 0.7},
    "all": {"with_bias": True, "softcap": 2.0, "scale": 3.0, "temperature": 1.3},
}


def name(value):
    if isinstance(value, c.Section):
        return f"{value.type}-{value.divergence.type}-{getattr(value, 'support', '')}"
    return None


def parts(seed=0, with_bias=False, **head):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden = normal(ROWS, HIDDEN).requires_grad_()
    weight = normal(PADDED, HIDDEN).requires_grad_()
    bias = normal(PADDED).requires_grad_() if with_bias else None
    teacher = Head(weight=normal(VOCABULARY + 5, TEACHER_HIDDEN), vocabulary=VOCABULARY)
    return (
        hidden,
        Head(weight=weight, bias=bias, vocabulary=VOCABULARY, **head),
        teacher,
        normal(ROWS, TEACHER_HIDDEN),
        torch.randint(0, VOCABULARY, (ROWS,), generator=generator),
        torch.rand(ROWS, generator=generator, dtype=torch.float64),
        normal(ROWS),
    )


def dense(objective, hidden, head, teacher, teacher_hidden, sampled, weights, extra):
    logits = hidden @ head.weight[:VOCABULARY].T
    if head.bias is not None:
        logits = logits + head.bias[:VOCABULARY]
    logits = logits * head.scale
    if head.softcap:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    p = (logits / head.temperature).log_softmax(-1)
    q = (teacher_hidden @ teacher.weight[:VOCABULARY].T).log_softmax(-1)
    loss = (token_losses(objective, p, q, sampled).losses * weights).sum()
    surrogate = (extra * p.gather(-1, sampled.unsqueeze(-1)).squeeze(-1)).sum()
    (loss + surrogate - surrogate.detach()).backward()
    return loss.detach()


def chunked(objective, hidden, head, teacher, teacher_hidden, sampled, weights, extra, rows):
    def visit(part, logits):
        p = logits.log_softmax(-1)
        q = teacher.logits(teacher_hidden[part]).log_softmax(-1)
        output, gradient = logit_gradient(
            objective, p, q, sampled[part], weights[part], extra[part]
        )
        return (output.losses * weights[part]).sum(), gradient

    loss = sweep(hidden, head, visit, rows)
    (2 * loss / 2).backward()  # a factor from above must pass through
    return loss.detach()


def gradients(hidden, head):
    tensors = [hidden, head.weight] + ([head.bias] if head.bias is not None else [])
    found = [t.grad.clone() for t in tensors]
    for tensor in tensors:
        tensor.grad = None
    return found


@pytest.mark.parametrize("objective", OBJECTIVES, ids=name)
@pytest.mark.parametrize("head", list(HEADS))
def test_chunked_equals_dense_for_every_chunk_size(objective, head):
    hidden, made, *rest = parts(**HEADS[head])
    expected_loss = dense(objective, hidden, made, *rest)
    expected = gradients(hidden, made)
    for rows in (1, 4, ROWS, None):
        loss = chunked(objective, hidden, made, *rest, rows)
        torch.testing.assert_close(loss, expected_loss, atol=1e-10, rtol=1e-10)
        for one, other in zip(gradients(hidden, made), expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


def test_padded_rows_of_the_head_get_no_gradient():
    hidden, head, *rest = parts(with_bias=True)
    chunked(c.Full(), hidden, head, *rest, 5)
    assert head.weight.grad[VOCABULARY:].abs().max() == 0
    assert head.bias.grad[VOCABULARY:].abs().max() == 0
    assert head.weight.grad[:VOCABULARY].abs().min() > 0


def test_a_tied_head_collects_the_gradients_of_both_its_uses():
    """The same matrix embeds and projects, as in most small models."""

    def loss_of(use_chunks):
        _, _, teacher, teacher_hidden, sampled, weights, extra = parts()
        generator = torch.Generator().manual_seed(1)
        shared = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64)
        shared.requires_grad_()
        head = Head(weight=shared, vocabulary=VOCABULARY)
        hidden = torch.tanh(shared[sampled.roll(1)])
        args = (c.TopK(k=3), hidden, head, teacher, teacher_hidden, sampled, weights, extra)
        _ = chunked(*args, 4) if use_chunks else dense(*args)
        return shared.grad

    torch.testing.assert_close(loss_of(True), loss_of(False), atol=1e-10, rtol=1e-10)


def test_hidden_states_that_are_logits_already_need_no_head():
    _, _, teacher, teacher_hidden, sampled, weights, extra = parts()
    logits = torch.randn(ROWS, PADDED, dtype=torch.float64, requires_grad=True)
    head = Head(weight=None, vocabulary=VOCABULARY)
    args = (teacher, teacher_hidden, sampled, weights, extra)
    chunked(c.Full(), logits, head, *args, 4)
    found = logits.grad.clone()
    logits.grad = None
    p = logits[:, :VOCABULARY].log_softmax(-1)
    q = (teacher_hidden @ teacher.weight[:VOCABULARY].T).log_softmax(-1)
    loss = (token_losses(c.Full(), p, q, sampled).losses * weights).sum()
    (loss + (extra * p.gather(-1, sampled[:, None]).squeeze(-1)).sum()).backward()
    torch.testing.assert_close(found, logits.grad, atol=1e-10, rtol=1e-10)
    assert found[:, VOCABULARY:].abs().max() == 0


def test_chunks_cover_every_row_once():
    for count, size in itertools.product((0, 1, 7, 8, 9), (1, 4, 8)):
        rows = [i for part in chunks(count, size) for i in range(count)[part]]
        assert rows == list(range(count))


def test_half_precision_heads_compute_in_float32():
    weight = torch.randn(VOCABULARY, HIDDEN).bfloat16()
    assert Head(weight=weight).logits(torch.randn(3, HIDDEN).bfloat16()).dtype == torch.float32


# --- a served teacher ------------------------------------------------------------------------


def served(q, ids, mask, sampled):
    return TokenScores(
        sampled=q.gather(-1, sampled[:, None]).squeeze(-1),
        ids=ids,
        logprobs=q.gather(-1, ids),
        mask=mask,
    )


@pytest.mark.parametrize(
    "objective",
    [
        c.Sampled(),
        c.Sampled(bound=0.5),
        c.TopK(k=3),
        c.TopK(k=3, tail=c.Renormalise(), divergence=c.JSD()),
        c.TopK(k=3, divergence=c.Mix()),
    ],
    ids=name,
)
def test_a_served_teacher_gives_the_loss_and_gradient_of_a_local_one(objective):
    generator = torch.Generator().manual_seed(3)
    z, q = (
        torch.randn(ROWS, VOCABULARY, generator=generator, dtype=torch.float64).log_softmax(-1)
        for _ in range(2)
    )
    sampled = torch.randint(0, VOCABULARY, (ROWS,), generator=generator)
    ids = z.topk(3).indices
    scores = served(q, ids, torch.ones_like(ids, dtype=torch.bool), sampled)
    ones = torch.ones(ROWS, dtype=torch.float64)
    local, gradient = logit_gradient(objective, z, q, sampled, ones)
    remote, other = logit_gradient(objective, z, scores, sampled, ones)
    torch.testing.assert_close(local.losses, remote.losses, atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient, other, atol=1e-12, rtol=0)


def test_what_a_served_teacher_cannot_give_is_refused():
    z = torch.randn(2, 5).log_softmax(-1)
    ids = torch.zeros(2, 1, dtype=torch.long)
    scores = served(z, ids, torch.ones_like(ids, dtype=torch.bool), ids[:, 0])
    for objective in (
        c.Full(),
        c.Sampled(baseline=c.KLBaseline()),
        c.TopK(k=2, divergence=c.Mix(ramp=c.EntropyRamp())),
    ):
        with pytest.raises(ValueError, match="full distribution"):
            token_losses(objective, z, scores, ids[:, 0])


# --- targets and brake -----------------------------------------------------------------------


def logprobs(seed):
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 1.5, (5, 7))
    return torch.tensor(z).log_softmax(-1)


def test_targets_have_their_closed_forms_and_are_normalised():
    p, q, r, q0 = (logprobs(seed) for seed in range(4))
    references = {"target.reference": r, "target.teacher_base": q0, "target.student_base": r}
    extrapolated = target_logprobs(c.ExtrapolatedTarget(strength=1.5), p, q, references)
    raw = r.exp() * (q.exp() / r.exp()) ** 1.5
    torch.testing.assert_close(extrapolated.exp(), raw / raw.sum(-1, keepdim=True))
    base = c.ModelConfig(path="x")
    shifted = target_logprobs(c.ShiftTarget(teacher_base=base), p, q, references)
    raw = r.exp() * q.exp() / q0.exp()
    torch.testing.assert_close(shifted.exp(), raw / raw.sum(-1, keepdim=True))
    mixed = target_logprobs(c.ArithmeticTarget(share=0.3), p, q, {})
    torch.testing.assert_close(mixed.exp(), 0.3 * q.exp() + 0.7 * p.exp())


def test_an_extrapolation_of_strength_one_is_the_teacher():
    p, q, r = (logprobs(seed) for seed in range(3))
    target = target_logprobs(c.ExtrapolatedTarget(strength=1.0), p, q, {"target.reference": r})
    torch.testing.assert_close(target, q)


def test_a_teacher_that_did_not_change_shifts_nothing():
    p, q, base = (logprobs(seed) for seed in range(3))
    references = {"target.teacher_base": q, "target.student_base": base}
    shift = c.ShiftTarget(teacher_base=c.ModelConfig(path="x"))
    torch.testing.assert_close(target_logprobs(shift, p, q, references), base)


def test_the_arithmetic_target_gives_the_skew_gradient_where_it_is_held_fixed():
    """Reverse KL to sg[share q + (1 - share) p]: the student's own part carries no gradient."""
    p, q = logprobs(0), logprobs(1)
    target = target_logprobs(c.ArithmeticTarget(share=0.4), p, q, {})
    assert not target.requires_grad
    _, gradient = logit_gradient(
        c.Full(), p, target, torch.zeros(5, dtype=torch.long), torch.ones(5, dtype=torch.float64)
    )
    log_ratio = p - target
    expected = p.exp() * (log_ratio - (p.exp() * log_ratio).sum(-1, keepdim=True))
    torch.testing.assert_close(gradient, expected)


def test_the_brakes_gradient_is_that_of_its_divergence():
    z = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    reference, weights = logprobs(2), torch.rand(5, dtype=torch.float64)
    p = z.log_softmax(-1)
    ((p.exp() * (p - reference)).sum(-1) * weights).sum().backward()
    _, gradient = brake_gradient(p.detach(), reference, weights)
    torch.testing.assert_close(gradient, z.grad)
