"""Draws follow the distribution, and depend on their key alone."""

import math

import numpy as np
import torch

from tutelage.ops.intervals import (
    bootstrap_interval,
    gap_recovery,
    pass_at_k,
    proportion_interval,
)
from tutelage.ops.sampling import draw, uniforms


def frequencies(logits, **options):
    count = 200_000
    drawn, _ = draw(
        logits.expand(count, -1), torch.from_numpy(uniforms(count, "test", 0)), **options
    )
    return torch.bincount(drawn, minlength=logits.shape[-1]) / count


def assert_frequencies(found, expected):
    """Every frequency within 4.5 standard errors: a false alarm in about 1e-5 of seeds."""
    error = (expected * (1 - expected) / 200_000).sqrt()
    assert ((found - expected).abs() <= 4.5 * error + 1e-12).all(), (found, expected)


LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0, -torch.inf])


def test_samples_follow_the_softmax_at_any_temperature():
    for temperature in (0.5, 1.0, 2.0):
        expected = (LOGITS / temperature).softmax(-1)
        assert_frequencies(frequencies(LOGITS, temperature=temperature), expected)


def test_top_p_keeps_the_smallest_set_that_reaches_the_mass():
    p = LOGITS.softmax(-1)  # .64 .24 .09 .03 .004
    kept = torch.where(torch.tensor([1, 1, 0, 0, 0, 0], dtype=torch.bool), p, 0.0)
    assert_frequencies(frequencies(LOGITS, top_p=0.8), kept / kept.sum())


def test_top_k_keeps_the_k_most_likely():
    p = LOGITS.softmax(-1)
    kept = torch.where(torch.arange(6) < 3, p, 0.0)
    assert_frequencies(frequencies(LOGITS, top_k=3), kept / kept.sum())


def test_logprob_is_that_before_truncation():
    ids, logprob = draw(LOGITS.expand(50, -1), torch.linspace(0, 0.999, 50), top_p=0.8, top_k=2)
    torch.testing.assert_close(logprob, LOGITS.log_softmax(-1)[ids])


def test_temperature_zero_is_greedy():
    ids, logprob = draw(LOGITS.expand(3, -1), torch.tensor([0.0, 0.5, 0.99]), temperature=0)
    assert ids.tolist() == [0, 0, 0]
    torch.testing.assert_close(logprob, LOGITS.log_softmax(-1)[ids])


def test_impossible_tokens_are_never_drawn_at_the_ends_of_the_unit_interval():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    for u in (0.0, 1 - 2**-53, np.nextafter(1, 0)):
        ids, _ = draw(logits, torch.tensor([u], dtype=torch.float64))
        assert ids.item() in (1, 3)


def test_uniforms_depend_on_every_part_of_the_key_and_on_nothing_else():
    key = (3, 5, "prompt", 1)
    first = uniforms(8, *key)
    np.random.seed(0)
    torch.manual_seed(0)
    assert (uniforms(8, *key) == first).all()
    assert (uniforms(4, *key) == first[:4]).all()
    for other in ((4, 5, "prompt", 1), (3, 6, "prompt", 1), (3, 5, "q", 1), (3, 5, "prompt", 2)):
        assert (uniforms(8, *other) != first).all()


def test_uniforms_of_many_keys_are_uniform_and_uncorrelated():
    values = np.stack([uniforms(2, 0, 0, "p", i) for i in range(20_000)])
    # Standard errors: mean 1/sqrt(12 n), correlation 1/sqrt(n); 4.5 of each.
    assert abs(values.mean() - 0.5) < 4.5 / math.sqrt(12 * values.size)
    assert abs(np.corrcoef(values.T)[0, 1]) < 4.5 / math.sqrt(20_000)
    assert abs(np.corrcoef(values[:-1, 0], values[1:, 0])[0, 1]) < 4.5 / math.sqrt(20_000)


# --- intervals -------------------------------------------------------------------------------


def test_interval_of_proportions_equals_wilsons():
    values = [1.0] * 7 + [0.0] * 13
    low, high = proportion_interval(values)
    assert (round(low, 4), round(high, 4)) == (0.1812, 0.5671)


def test_interval_covers_at_its_nominal_rate():
    rng = np.random.default_rng(0)
    for p, n in ((0.1, 100), (0.5, 30), (0.5, 300), (0.9, 300)):
        hits = 0
        for _ in range(2000):
            low, high = proportion_interval(rng.binomial(1, p, n).astype(float).tolist())
            hits += low <= p <= high
        assert 0.92 <= hits / 2000 <= 0.98, (p, n, hits / 2000)


def test_interval_counts_questions_not_samples():
    """All-or-nothing questions sampled 16 times carry no more than one sample each."""
    once = [1.0] * 10 + [0.0] * 10
    assert proportion_interval(once) == proportion_interval(list(once))
    noisy = [0.5 + 0.1 * (-1) ** i for i in range(20)]
    low, high = proportion_interval(noisy)
    wide_low, wide_high = proportion_interval(once)
    assert high - low < 0.5 * (wide_high - wide_low)


def test_interval_never_leaves_the_unit_interval_and_is_never_empty_of_width():
    for values in ([0.0] * 5, [1.0] * 5, [1.0]):
        low, high = proportion_interval(values)
        assert 0 <= low < high <= 1


def test_pass_at_k_equals_counting_subsets():
    from itertools import combinations

    for correct in range(6):
        outcomes = [1] * correct + [0] * (5 - correct)
        for k in range(1, 6):
            subsets = list(combinations(outcomes, k))
            expected = sum(any(s) for s in subsets) / len(subsets)
            assert abs(pass_at_k(correct, 5, k) - expected) < 1e-12


def test_gap_recovery_is_undefined_where_the_teacher_is_no_better():
    assert abs(gap_recovery(0.2, 0.5, 0.8) - 0.5) < 1e-12
    assert gap_recovery(0.5, 0.6, 0.5) is None


def test_bootstrap_interval_refuses_a_statistic_that_is_often_undefined():
    column = np.array([0.0, 1.0])
    assert bootstrap_interval([column], lambda c: 1.0 if c.any() else None) is None
    assert bootstrap_interval([np.arange(50.0)], lambda c: float(c.mean())) is not None
