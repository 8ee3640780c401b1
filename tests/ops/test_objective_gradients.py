"""Every objective's gradient against enumeration over a small vocabulary, in float64.

The oracles are written from the definitions, outcome by outcome, in numpy; they
share no code with the package.
"""

import itertools

import numpy as np
import pytest
import torch

from tutelage import config as c
from tutelage.objective import logit_gradient, token_losses

SUPPORTS = ["student", "teacher", "union", "intersection", "symmetric_difference"]
DIVERGENCES = [
    c.ReverseKL(),
    c.ForwardKL(),
    c.JSD(beta=0.5),
    c.JSD(beta=0.1),
    c.JSD(beta=0.85),
    c.Skew(alpha=0.1),
    c.Skew(alpha=0.4, direction="forward"),
    c.Power(alpha=0.5),
    c.Power(alpha=3.0),
    c.Mix(forward=0.3),
]
TAILS = [c.Bucket(), c.Renormalise(), c.Drop()]
VOCABULARY = 9


def name(value):
    if not isinstance(value, c.Section):
        return value
    return "-".join(str(v) for v in value.model_dump(exclude_none=True).values())


def states(count=6, vocabulary=VOCABULARY, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1.5, (count, vocabulary)), rng.normal(0, 1.5, (count, vocabulary))


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def top(scores, k):
    return set(sorted(range(len(scores)), key=lambda v: (-scores[v], v))[:k])


def support_of(kind, p, q, k):
    student, teacher = top(p, k), top(q, k)
    return {
        "student": student,
        "teacher": teacher,
        "union": student | teacher,
        "intersection": student & teacher,
        "symmetric_difference": student ^ teacher,
    }[kind]


def phi(divergence, p, q):
    """Reward of one outcome: u f'(u) - f(u), shifted to vanish at u = 1."""
    if isinstance(divergence, c.ReverseKL):
        return np.log(q / p)
    if isinstance(divergence, c.ForwardKL):
        return q / p - 1
    if isinstance(divergence, c.Power):
        return q**divergence.alpha - p**divergence.alpha
    if isinstance(divergence, c.Mix):
        f = divergence.forward
        return (1 - f) * np.log(q / p) + f * (q / p - 1)
    if isinstance(divergence, c.Skew):
        a = divergence.alpha
        if divergence.direction == "reverse":
            m = a * p + (1 - a) * q
            return np.log(m / p) - (1 - a) * q / m + (1 - a)
        m = a * q + (1 - a) * p
        return (1 - a) * (q / m) - (1 - a)
    beta = divergence.beta
    return (1 - beta) * np.log((beta * q + (1 - beta) * p) / p)


def value(divergence, p, q):
    """One outcome's term of the divergence."""
    if isinstance(divergence, c.ReverseKL):
        return p * np.log(p / q)
    if isinstance(divergence, c.ForwardKL):
        return q * np.log(q / p)
    if isinstance(divergence, c.Power):
        a = divergence.alpha
        return p ** (a + 1) / (a + 1) - q**a * p + a / (a + 1) * q ** (a + 1)
    if isinstance(divergence, c.Mix):
        f = divergence.forward
        return (1 - f) * p * np.log(p / q) + f * q * np.log(q / p)
    if isinstance(divergence, c.Skew):
        a = divergence.alpha
        if divergence.direction == "reverse":
            return p * np.log(p / (a * p + (1 - a) * q))
        return q * np.log(q / (a * q + (1 - a) * p))
    beta = divergence.beta
    m = beta * q + (1 - beta) * p
    return beta * q * np.log(q / m) + (1 - beta) * p * np.log(p / m)


def outcome_gradient(divergence, p, q, outcomes):
    """Gradient in all logits of sum over outcomes, each a set of tokens."""
    gradient = np.zeros(len(p))
    for outcome in outcomes:
        tokens = list(outcome)
        p_o, q_o = p[tokens].sum(), q[tokens].sum()
        if p_o <= 1e-300:
            continue
        inside = np.isin(np.arange(len(p)), tokens)
        gradient += -phi(divergence, p_o, q_o) * p * (inside - p_o)
    return gradient


def oracle(objective, z_student, z_teacher):
    """(value, gradient) of one state."""
    p, q = softmax(z_student), softmax(z_teacher)
    everything = [{v} for v in range(len(p))]
    divergence = objective.divergence
    if isinstance(objective, c.Full | c.Sampled):
        return value(divergence, p, q).sum(), outcome_gradient(divergence, p, q, everything)
    s = sorted(support_of(objective.support, p, q, objective.k))
    if isinstance(objective.tail, c.Bucket):
        rest = set(range(len(p))) - set(s)
        outcomes = [{v} for v in s] + ([rest] if rest else [])
        sums = [(p[list(o)].sum(), q[list(o)].sum()) for o in outcomes]
        return sum(value(divergence, a, b) for a, b in sums), outcome_gradient(
            divergence, p, q, outcomes
        )
    gradient = np.zeros(len(p))
    if not s:
        return 0.0, gradient
    if isinstance(objective.tail, c.Renormalise):
        p_bar, q_bar = p[s] / p[s].sum(), q[s] / q[s].sum()
        gradient[s] = outcome_gradient(divergence, p_bar, q_bar, [{i} for i in range(len(s))])
        return value(divergence, p_bar, q_bar).sum(), gradient
    if isinstance(objective.tail, c.Drop):
        for v in s:
            gradient -= p[v] * phi(divergence, p[v], q[v]) * (np.eye(len(p))[v] - p)
        return value(divergence, p[s], q[s]).sum(), gradient
    weight = {"student": p[s], "teacher": q[s], "uniform": np.ones(len(s))}[objective.tail.weight]
    normalise = objective.tail.normalise
    if normalise is None:
        normalise = objective.support != "symmetric_difference"
    weight = weight / weight.sum() if normalise else weight
    ratio = np.log(p[s] / q[s])
    gradient[s] = weight * ratio
    d = (weight * ratio).sum()
    return d, gradient - d * p


def package(objective, z_student, z_teacher, sampled=None):
    """Losses and gradient from the package, which must agree on both its ways to them."""
    z = torch.tensor(z_student, requires_grad=True)
    logq = torch.tensor(z_teacher).log_softmax(-1)
    if sampled is None:
        sampled = torch.zeros(len(z), dtype=torch.long)
    output = token_losses(objective, z.log_softmax(-1), logq, sampled)
    output.losses.sum().backward()
    direct, gradient = logit_gradient(
        objective, z.detach().log_softmax(-1), logq, sampled, torch.ones(len(z), dtype=z.dtype)
    )
    torch.testing.assert_close(direct.losses, output.losses.detach(), atol=1e-11, rtol=1e-11)
    torch.testing.assert_close(gradient, z.grad, atol=1e-11, rtol=1e-11)
    assert direct.metrics.keys() == output.metrics.keys()
    return output, z.grad.numpy()


def assert_matches(objective, k_states):
    z_student, z_teacher = k_states
    output, gradient = package(objective, z_student, z_teacher)
    for row in range(len(z_student)):
        expected_value, expected = oracle(objective, z_student[row], z_teacher[row])
        assert output.losses[row].item() == pytest.approx(expected_value, abs=1e-9)
        np.testing.assert_allclose(gradient[row], expected, atol=1e-9)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=name)
def test_full_vocabulary_gradient_equals_enumeration(divergence):
    assert_matches(c.Full(divergence=divergence), states())


@pytest.mark.parametrize(
    ("support", "tail", "divergence"),
    list(itertools.product(SUPPORTS, TAILS, DIVERGENCES)),
    ids=name,
)
@pytest.mark.parametrize("k", [2, 4, VOCABULARY])
def test_top_k_gradient_equals_enumeration(support, tail, divergence, k):
    assert_matches(c.TopK(support=support, tail=tail, divergence=divergence, k=k), states(seed=k))


@pytest.mark.parametrize("weight", ["student", "teacher", "uniform"])
@pytest.mark.parametrize("normalise", [None, True, False])
@pytest.mark.parametrize("support", SUPPORTS)
def test_reference_code_gradient_equals_its_formula(weight, normalise, support):
    tail = c.ReferenceCode(weight=weight, normalise=normalise)
    for k in (1, 3, VOCABULARY):
        assert_matches(c.TopK(support=support, tail=tail, k=k), states(seed=k))


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=name)
def test_sampled_gradient_and_value_average_to_the_full_ones(divergence):
    z_student, z_teacher = states()
    rows, vocabulary = z_student.shape
    p = np.exp(z_student) / np.exp(z_student).sum(-1, keepdims=True)
    mean_value, mean_gradient = np.zeros(rows), np.zeros_like(z_student)
    for token in range(vocabulary):
        drawn = torch.full((rows,), token)
        output, gradient = package(c.Sampled(divergence=divergence), z_student, z_teacher, drawn)
        mean_value += p[:, token] * output.losses.detach().numpy()
        mean_gradient += p[:, [token]] * gradient
    for row in range(rows):
        expected = oracle(c.Full(divergence=divergence), z_student[row], z_teacher[row])
        assert mean_value[row] == pytest.approx(expected[0], abs=1e-9)
        np.testing.assert_allclose(mean_gradient[row], expected[1], atol=1e-9)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=name)
@pytest.mark.parametrize(
    "objective",
    [c.Full(), c.TopK(k=3), c.TopK(k=3, tail=c.Renormalise()), c.TopK(k=3, support="union")],
    ids=["full", "bucket", "renormalise", "union"],
)
def test_gradient_equals_finite_differences_of_the_value(objective, divergence):
    """Where the loss is a function of the logits (no surrogate), its slope is the gradient."""
    objective = objective.model_copy(update={"divergence": divergence})
    z_student, z_teacher = states(count=2)
    _, gradient = package(objective, z_student, z_teacher)
    step = 1e-6
    for row, token in itertools.product(range(2), range(VOCABULARY)):
        shifted = []
        for sign in (1, -1):
            moved = z_student.copy()
            moved[row, token] += sign * step
            shifted.append(package(objective, moved, z_teacher)[0].losses[row].item())
        slope = (shifted[0] - shifted[1]) / (2 * step)
        assert gradient[row, token] == pytest.approx(slope, abs=1e-7)


# --- facts about the reference code's top-k loss ---------------------------------------------


def reference(k, support="student"):
    return c.TopK(k=k, support=support, tail=c.ReferenceCode())


def test_reference_code_with_the_whole_vocabulary_is_the_exact_reverse_kl():
    z_student, z_teacher = states()
    coded, gradient = package(reference(VOCABULARY), z_student, z_teacher)
    exact, expected = package(c.Full(), z_student, z_teacher)
    np.testing.assert_allclose(gradient, expected, atol=1e-12)
    np.testing.assert_allclose(coded.losses.detach(), exact.losses.detach(), atol=1e-12)


def test_reference_code_differs_from_equation_5_by_d_times_grad_log_mass():
    z_student, z_teacher = states()
    for k in (2, 4, 6):
        coded, gradient = package(reference(k), z_student, z_teacher)
        _, equation_5 = package(c.TopK(k=k, tail=c.Renormalise()), z_student, z_teacher)
        z = torch.tensor(z_student, requires_grad=True)
        logprobs = z.log_softmax(-1)
        mass = logprobs.topk(k).values.logsumexp(-1)
        (mass * coded.losses.detach()).sum().backward()
        np.testing.assert_allclose(gradient - equation_5, z.grad.numpy(), atol=1e-12)


def test_equation_5_with_one_token_is_zero_and_the_code_is_not():
    z_student, z_teacher = states()
    one = c.TopK.model_construct(
        divergence=c.ReverseKL(), support="student", k=1, tail=c.Renormalise()
    )
    output, gradient = package(one, z_student, z_teacher)
    assert np.abs(gradient).max() == 0
    assert output.losses.detach().abs().max() == 0
    assert np.abs(package(reference(1), z_student, z_teacher)[1]).min(0).max() > 1e-3


def test_the_codes_tail_is_pushed_up_without_asking_the_teacher():
    """Two teachers that differ only outside the support give the same gradient there."""
    z_student, z_teacher = states()
    z_student[:, :3] += 6  # the support, surely
    q = np.exp(z_teacher) / np.exp(z_teacher).sum(-1, keepdims=True)
    swapped = q.copy()
    swapped[:, 3:] = q[:, 3:][:, ::-1]
    _, first = package(reference(3), z_student, np.log(q))
    _, second = package(reference(3), z_student, np.log(swapped))
    np.testing.assert_allclose(first, second, atol=1e-12)
    _, exact_first = package(c.Full(), z_student, np.log(q))
    _, exact_second = package(c.Full(), z_student, np.log(swapped))
    assert np.abs(exact_first - exact_second).max() > 1e-4


def test_the_codes_logged_value_can_be_negative():
    p = np.array([[0.4, 0.3, 0.2, 0.1]])
    q = np.array([[0.5, 0.35, 0.1, 0.05]])
    output, _ = package(reference(2), np.log(p), np.log(q))
    assert output.losses.item() < 0


@pytest.mark.parametrize("tail", [*TAILS, c.ReferenceCode()], ids=name)
def test_an_empty_intersection_gives_no_loss_no_gradient_and_no_nan(tail):
    z_student = np.array([[9.0, 8.0, 0.0, 0.0, 0.0, 0.0]])
    z_teacher = np.array([[0.0, 0.0, 9.0, 8.0, 0.0, 0.0]])
    objective = c.TopK(k=2, support="intersection", tail=tail)
    output, gradient = package(objective, z_student, z_teacher)
    assert np.isfinite(gradient).all()
    assert output.losses.item() == pytest.approx(0, abs=1e-12)
    assert np.abs(gradient).max() == pytest.approx(0, abs=1e-12)


# --- identities and bounds -------------------------------------------------------------------


def test_naive_top_k_gradient_is_the_drop_form_plus_the_gradient_of_the_mass():
    z_student, z_teacher = states()
    _, drop = package(c.TopK(k=3, tail=c.Drop()), z_student, z_teacher)
    z = torch.tensor(z_student, requires_grad=True)
    p, q = z.log_softmax(-1), torch.tensor(z_teacher).log_softmax(-1)
    ids = p.topk(3).indices
    p_s, q_s = p.gather(-1, ids), q.gather(-1, ids)
    (p_s.exp() * (p_s - q_s)).sum().backward()
    naive = z.grad.numpy().copy()
    z.grad = None
    z.log_softmax(-1).gather(-1, ids).exp().sum().backward()
    np.testing.assert_allclose(naive, drop + z.grad.numpy(), atol=1e-12)


@pytest.mark.parametrize(
    "divergence", [d for d in DIVERGENCES if not isinstance(d, c.Power)], ids=name
)
@pytest.mark.parametrize("support", SUPPORTS)
def test_bucketed_divergence_lies_between_zero_and_the_full_one(divergence, support):
    z_student, z_teacher = states(count=500)
    bucket, _ = package(c.TopK(k=3, support=support, divergence=divergence), z_student, z_teacher)
    full, _ = package(c.Full(divergence=divergence), z_student, z_teacher)
    assert (bucket.losses >= -1e-12).all()
    assert (bucket.losses <= full.losses + 1e-12).all()


@pytest.mark.parametrize(
    ("divergence", "tail"),
    [*itertools.product(DIVERGENCES, TAILS), (c.ReverseKL(), c.ReferenceCode())],
    ids=name,
)
def test_equal_models_have_no_loss_and_no_gradient(divergence, tail):
    z, _ = states()
    output, gradient = package(c.TopK(k=3, divergence=divergence, tail=tail), z, z)
    assert output.losses.detach().abs().max() < 1e-12
    assert np.abs(gradient).max() < 1e-12


def test_bucket_gradient_vanishes_when_the_coarse_pair_agrees():
    p = np.array([[0.4, 0.3, 0.2, 0.1]])
    q = np.array([[0.4, 0.3, 0.05, 0.25]])  # same on the support, same mass outside
    _, gradient = package(c.TopK(k=2), np.log(p), np.log(q))
    assert np.abs(gradient).max() < 1e-12
    _, full = package(c.Full(), np.log(p), np.log(q))
    assert np.abs(full).max() > 0.01


def test_support_metrics_are_the_masses_and_the_buckets_own_term():
    p = np.array([[0.5, 0.3, 0.15, 0.05]])
    q = np.array([[0.1, 0.2, 0.3, 0.4]])
    output, _ = package(c.TopK(k=2), np.log(p), np.log(q))
    assert output.metrics["support/student_mass"].item() == pytest.approx(0.8)
    assert output.metrics["support/teacher_mass"].item() == pytest.approx(0.3)
    tail = 0.2 * np.log(0.2 / 0.7)
    assert output.metrics["support/tail_loss"].item() == pytest.approx(tail)
