"""The move of an objective at a node is what training with it would do to the logits there."""

import numpy as np
import pytest
import torch
import yaml
from pydantic import TypeAdapter

from tutelage import config as c
from tutelage.alignment.moves import as_move, node_moves
from tutelage.config.reading import preset_names, preset_text
from tutelage.objective import logit_gradient, target_logprobs, token_losses
from tutelage.ops.alignment import moves

DIVERGENCES = [
    c.ReverseKL(),
    c.ForwardKL(),
    c.JSD(beta=0.3),
    c.Skew(),
    c.Skew(direction="forward", alpha=0.3),
    c.Power(alpha=0.5),
    c.Mix(forward=0.4),
    c.Mix(ramp=c.EntropyRamp(low=0.5, high=1.8)),
]
SUPPORTS = ["student", "teacher", "union", "intersection", "symmetric_difference"]
EXACT = [
    *(c.Full(divergence=d) for d in DIVERGENCES),
    *(c.TopK(support=s, k=3, tail=t) for s in SUPPORTS for t in (c.Bucket(), c.Renormalise())),
    *(c.TopK(divergence=d, k=4) for d in DIVERGENCES),
    c.Full(target=c.ArithmeticTarget(share=0.4)),
]
SURROGATES = [
    *(c.TopK(support=s, k=3, tail=t) for s in SUPPORTS for t in (c.Drop(), c.ReferenceCode())),
    c.TopK(k=3, tail=c.ReferenceCode(weight="teacher", normalise=False)),
]
SAMPLED = [
    *(c.Sampled(divergence=d) for d in DIVERGENCES),
    c.Sampled(bound=1.0),
    c.Sampled(baseline=c.KLBaseline()),
    c.Sampled(baseline=c.KLBaseline(k=2), bound=0.5),
]


def preset_objective(name):
    return TypeAdapter(c.Objective).validate_python(yaml.safe_load(preset_text(name))["objective"])


def name(objective):
    return "-".join(str(v) for v in objective.model_dump(exclude_defaults=True).values()) or "plain"


def states(count=5, vocabulary=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(2, count, vocabulary, generator=generator, dtype=torch.float64)


def fixed_target(objective, student, teacher):
    return target_logprobs(objective.target, student.log_softmax(-1), teacher, {})


def steepest_descent(objective, logits, teacher):
    """Minus central differences of the losses in each logit."""
    target, h = fixed_target(objective, logits, teacher), 1e-6
    nobody = torch.zeros(len(logits), dtype=torch.long)
    slopes = []
    for v in range(logits.shape[1]):
        ends = []
        for sign in (1, -1):
            moved = logits.clone()
            moved[:, v] += sign * h
            ends.append(token_losses(objective, moved.log_softmax(-1), target, nobody).losses)
        slopes.append((ends[1] - ends[0]) / (2 * h))
    return torch.stack(slopes, -1)


def descent_by_autograd(objective, logits, teacher, sampled):
    target = fixed_target(objective, logits, teacher)
    logits = logits.clone().requires_grad_()
    token_losses(objective, logits.log_softmax(-1), target, sampled).losses.sum().backward()
    return -logits.grad


@pytest.mark.parametrize("objective", EXACT, ids=name)
def test_the_move_is_the_steepest_descent_of_the_loss(objective):
    logits, teacher = states()
    teacher = teacher.log_softmax(-1)
    ours = node_moves(objective, logits.log_softmax(-1), teacher)
    expected = steepest_descent(objective, logits, teacher)
    torch.testing.assert_close(ours, expected, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("objective", SURROGATES, ids=name)
def test_the_move_of_a_surrogate_is_its_gradient_reversed(objective):
    logits, teacher = states()
    teacher = teacher.log_softmax(-1)
    nobody = torch.zeros(len(logits), dtype=torch.long)
    ours = node_moves(objective, logits.log_softmax(-1), teacher)
    expected = descent_by_autograd(objective, logits, teacher, nobody)
    torch.testing.assert_close(ours, expected, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("objective", SAMPLED, ids=name)
def test_the_move_of_a_sampled_objective_is_its_exact_mean_over_the_draw(objective):
    logits, teacher = states()
    teacher, student = teacher.log_softmax(-1), logits.log_softmax(-1)
    ones = torch.ones(len(logits), dtype=torch.float64)
    average = torch.zeros_like(logits)
    for token in range(logits.shape[1]):
        drawn = torch.full((len(logits),), token)
        _, gradient = logit_gradient(objective, student, teacher, drawn, ones)
        average -= student[:, token : token + 1].exp() * gradient
    torch.testing.assert_close(
        node_moves(objective, student, teacher), average, atol=1e-12, rtol=1e-9
    )


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_has_a_move(preset):
    objective = preset_objective(preset)
    logits, teacher = states(vocabulary=20)
    student, teacher = logits.log_softmax(-1), teacher.log_softmax(-1)
    ours = node_moves(objective, student, teacher)
    if isinstance(objective, c.Sampled):
        expected = node_moves(c.Full(), student, teacher)
    elif isinstance(getattr(objective, "tail", None), c.ReferenceCode):
        nobody = torch.zeros(len(logits), dtype=torch.long)
        expected = descent_by_autograd(objective, logits, teacher, nobody)
    else:
        expected = steepest_descent(objective, logits, teacher)
    torch.testing.assert_close(ours, expected, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize(
    ("objective", "closed_form"),
    [
        (c.Full(), moves.kl_student_teacher),
        (c.Sampled(), moves.kl_student_teacher),
        (c.TopK(k=50), moves.kl_student_teacher),
        (c.Full(divergence=c.ForwardKL()), moves.kl_teacher_student),
        (c.Full(divergence=c.JSD(beta=0.3)), lambda p, q: moves.jensen_shannon(p, q, 0.3)),
    ],
    ids=["full", "sampled", "top_k", "forward", "jsd"],
)
def test_closed_forms_and_objectives_agree_on_padded_children(objective, closed_form):
    p = np.array([[0.5, 0.3, 0.2, 0], [0.6, 0, 0.4, 0]])
    q = np.array([[0.2, 0.3, 0.5, 0], [0.9, 0, 0.1, 0]])
    assert as_move(objective)(p, q) == pytest.approx(closed_form(p, q), abs=1e-12)


def test_a_teacher_without_mass_on_a_child_gives_a_finite_move():
    p, q = np.array([[0.5, 0.5, 0.0]]), np.array([[1.0, 0.0, 0.0]])
    for objective in (*EXACT, *SURROGATES, *SAMPLED):
        assert np.isfinite(as_move(objective)(p, q)).all()
    assert as_move(c.Full())(p, q) == pytest.approx(moves.kl_student_teacher(p, q), abs=1e-12)


def test_return_to_go_makes_the_move_that_of_the_whole_sequences_divergence():
    logits, teacher = states()
    student, teacher = logits.log_softmax(-1), teacher.log_softmax(-1)
    downstream = torch.rand(logits.shape, dtype=torch.float64)
    ours = node_moves(c.Full(return_to_go=1.0), student, teacher, downstream=downstream)
    arrays = [x.numpy() for x in (student.exp(), teacher.exp(), downstream)]
    assert ours.numpy() == pytest.approx(moves.sequence_kl(*arrays), abs=1e-12)
    with pytest.raises(ValueError, match="downstream"):
        node_moves(c.Full(return_to_go=1.0), student, teacher)


def test_the_brake_adds_the_move_towards_the_reference():
    logits, teacher = states()
    student, teacher = logits.log_softmax(-1), teacher.log_softmax(-1)
    reference = states(seed=1)[0].log_softmax(-1)
    braked = c.Full(brake=c.Brake(coefficient=0.2))
    ours = node_moves(braked, student, teacher, {"brake": reference})
    parts = [node_moves(c.Full(), student, to) for to in (teacher, reference)]
    torch.testing.assert_close(ours, parts[0] + 0.2 * parts[1])
    with pytest.raises(ValueError, match=r"brake.*node_moves"):
        as_move(braked)
