"""Metrics against brute-force set arithmetic and closed forms."""

import math

import numpy as np
import pytest
import torch

from tutelage import metrics
from tutelage.data.collate import collate
from tutelage.ops import logprobs, overlap
from tutelage.ops.support import combine, top_k_ids
from tutelage.types import Prompt, Rollout


def random_logprobs(rows=50, vocabulary=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)
    return logits.log_softmax(-1)


def rollout(completion, prompt=(1, 2), reward=None, reason="stop"):
    return Rollout(
        prompt=Prompt(id="p", text="p"),
        index=0,
        prompt_ids=tuple(prompt),
        completion_ids=tuple(completion),
        logprobs=(0.0,) * len(completion),
        finish_reason=reason,
        text="",
        policy_step=0,
        reward=reward,
    )


def test_every_overlap_metric_equals_brute_force():
    p, q, k = random_logprobs(seed=1), random_logprobs(seed=2), 5
    drawn = torch.randint(0, 40, (50,), generator=torch.Generator().manual_seed(3))
    table = metrics.token_statistics(p, q, drawn, k)
    pooled_sum = pooled_count = 0.0
    for row in range(50):
        a, b = p[row].exp().numpy(), q[row].exp().numpy()
        student = sorted(range(40), key=lambda v: (-a[v], v))[:k]
        teacher = sorted(range(40), key=lambda v: (-b[v], v))[:k]
        shared = [v for v in student if v in teacher]
        assert table["overlap/ratio"][row] == pytest.approx(len(shared) / k)
        assert table["overlap/mass_student"][row] == pytest.approx(a[shared].sum())
        assert table["overlap/mass_teacher"][row] == pytest.approx(b[shared].sum())
        assert table["overlap/empty_fraction"][row] == (not shared)
        if shared:
            p_bar, q_bar = a[shared] / a[shared].sum(), b[shared] / b[shared].sum()
            kl = (p_bar * np.log(p_bar / q_bar)).sum()
            assert table["overlap/advantage"][row] == pytest.approx(-kl / len(shared))
            weight = a[shared] / a[student].sum()
            pooled_sum += (weight * np.log(b[shared] / a[shared])).sum()
            pooled_count += len(shared)
        else:
            assert table["overlap/advantage"][row].isnan()
        entropy_p, entropy_q = -(a * np.log(a)).sum(), -(b * np.log(b)).sum()
        assert table["entropy/gap"][row] == pytest.approx(abs(entropy_p - entropy_q))
        assert table["kl/reverse"][row] == pytest.approx((a * np.log(a / b)).sum())
        assert table["kl/forward"][row] == pytest.approx((b * np.log(b / a)).sum())
        token = int(drawn[row])
        assert table["reward/mean"][row] == pytest.approx(math.log(b[token] / a[token]))
    record = metrics.summarise_tokens(table)
    assert record["overlap/advantage_unnormalised"] == pytest.approx(pooled_sum / pooled_count)


def test_a_model_overlaps_with_itself_exactly_even_with_ties():
    tied = torch.randint(0, 4, (200, 64), generator=torch.Generator().manual_seed(0))
    logits = tied.to(torch.bfloat16)
    own = logprobs.log_probs(logits)
    table = metrics.token_statistics(own, own.clone(), tied[:, 0], 8)
    record = metrics.summarise_tokens(table)
    assert record["overlap/ratio"] == 1.0
    assert record["overlap/advantage"] == 0.0
    assert record["entropy/gap"] == 0.0
    assert record["kl/reverse"] == 0.0


def test_near_ties_at_the_boundary_are_counted():
    p = torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.5, 0.3, 0.15, 0.05]]).log()
    table = metrics.token_statistics(p, p, torch.tensor([0, 0]), 3)
    assert table["overlap/near_ties"].tolist() == [1, 0]
    table = metrics.token_statistics(p, p, torch.tensor([0, 0]), 4)
    assert table["overlap/near_ties"].tolist() == [0, 0]  # nothing lies beyond the whole vocabulary


def test_ties_go_to_the_lower_id():
    scores = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert [sorted(row) for row in top_k_ids(scores, 3).tolist()] == [[1, 2, 3], [0, 1, 2]]
    generator = torch.Generator().manual_seed(0)
    for width in range(1, 40):
        scores = torch.randint(0, 5, (7, width), generator=generator).float()
        scores[:, :: 3 + width % 2] = -torch.inf
        order = scores.sort(dim=-1, descending=True, stable=True).indices
        for k in range(1, width + 1):
            found = top_k_ids(scores, k).sort(-1).values
            assert torch.equal(found, order[:, :k].sort(-1).values)
    for width in (5000, 5041, 9999):  # long rows are looked at in blocks
        for values in (5, 4000, 10**6):
            scores = torch.randint(0, values, (7, width), generator=generator).float()
            order = scores.sort(dim=-1, descending=True, stable=True).indices
            for k in (1, 2, 7):
                found = top_k_ids(scores, k).sort(-1).values
                assert torch.equal(found, order[:, :k].sort(-1).values)


def test_supports_equal_set_arithmetic_without_duplicates():
    p, q = random_logprobs(seed=4), random_logprobs(seed=5)
    student, teacher = top_k_ids(p, 6), top_k_ids(q, 6)
    wanted = {
        "student": lambda a, b: a,
        "teacher": lambda a, b: b,
        "union": lambda a, b: a | b,
        "intersection": lambda a, b: a & b,
        "symmetric_difference": lambda a, b: a ^ b,
    }
    for kind, combined in wanted.items():
        support = combine(kind, student, teacher)
        for row in range(len(p)):
            kept = support.ids[row][support.mask[row]].tolist()
            assert len(kept) == len(set(kept))
            assert set(kept) == combined(set(student[row].tolist()), set(teacher[row].tolist()))


def test_equal_top_sets_give_ratio_one_and_the_students_mass():
    p = random_logprobs(seed=6)
    q = (2 * p).log_softmax(-1)  # sharper, same order
    table = metrics.token_statistics(p, q, torch.zeros(50, dtype=torch.long), 5)
    assert (table["overlap/ratio"] == 1).all()
    mass = p.topk(5).values.exp().sum(-1)
    torch.testing.assert_close(table["overlap/mass_student"], mass)


def test_advantage_is_never_positive_and_the_unnormalised_one_can_be():
    p, q = random_logprobs(seed=7), random_logprobs(seed=8)
    record = metrics.token_statistics(p, q, torch.zeros(50, dtype=torch.long), 5)
    defined = record["overlap/advantage"][~record["overlap/advantage"].isnan()]
    assert (defined <= 1e-12).all()
    sharp = torch.tensor([[0.6, 0.3, 0.05, 0.05]]).log()
    flat = torch.tensor([[0.4, 0.2, 0.2, 0.2]]).log()
    ids = top_k_ids(flat, 2)
    common = overlap.shared(ids, top_k_ids(sharp, 2))
    total, _ = overlap.overlap_advantage_unnormalised(
        flat.gather(-1, ids), sharp.gather(-1, ids), common
    )
    assert total.item() > 0


def test_entropy_gap_is_at_least_the_distance_of_the_means():
    p, q = random_logprobs(seed=9), random_logprobs(seed=10)
    record = metrics.summarise_tokens(
        metrics.token_statistics(p, q, torch.zeros(50, dtype=torch.long), 5)
    )
    distance = abs(record["entropy/student"] - record["entropy/teacher"])
    assert record["entropy/gap"] >= distance


def test_mass_over_all_positions_is_the_codes_mass_times_the_share_of_nonempty_ones():
    p, q = random_logprobs(seed=11), random_logprobs(seed=12)
    table = metrics.token_statistics(p, q, torch.zeros(50, dtype=torch.long), 3)
    nonempty = table["overlap/empty_fraction"] == 0
    assert 0 < nonempty.sum() < 50
    record = metrics.summarise_tokens(table)
    code = table["overlap/mass_student"][nonempty].mean().item()
    assert record["overlap/mass_student"] == pytest.approx(
        code * (1 - record["overlap/empty_fraction"])
    )


def test_undefined_is_absent_from_the_record():
    p = torch.tensor([[0.9, 0.05, 0.03, 0.02]]).log()
    q = torch.tensor([[0.05, 0.9, 0.02, 0.03]]).log()
    record = metrics.summarise_tokens(metrics.token_statistics(p, q, torch.tensor([0]), 1))
    assert record["overlap/empty_fraction"] == 1
    assert "overlap/advantage" not in record
    assert "overlap/advantage_unnormalised" not in record


def test_count_stands_beside_a_metric_that_is_defined_on_fewer_tokens():
    p, q = random_logprobs(seed=11), random_logprobs(seed=12)
    table = metrics.token_statistics(p, q, torch.zeros(50, dtype=torch.long), 3)
    record = metrics.summarise_tokens(table)
    assert record["overlap/advantage/count"] == int((~table["overlap/advantage"].isnan()).sum())
    assert "kl/reverse/count" not in record


def test_position_bins_hold_every_token_once_and_average_to_the_whole():
    table = {"kl/reverse": torch.rand(1000, dtype=torch.float64)}
    positions = torch.randint(0, 2500, (1000,))
    series = metrics.summarise_positions(table, positions, 2500)
    for name, bins in (("bins", 32), ("chunks_1024", 3)):
        counts = series[name]["tokens"]
        assert sum(counts) == 1000
        assert len(counts) == bins
        means = series[name]["kl/reverse"]
        total = sum(m * n for m, n in zip(means, counts, strict=True) if n)
        assert total == pytest.approx(table["kl/reverse"].sum().item())


def test_an_empty_bin_is_null():
    series = metrics.summarise_positions({"kl/reverse": torch.tensor([1.0])}, torch.tensor([0]), 64)
    assert series["bins"]["kl/reverse"][1] is None


def test_repetition_counts_repeated_four_grams():
    assert metrics.repetition([1, 2, 3]) is None
    assert metrics.repetition([1, 2, 3, 4, 5]) == 0
    assert metrics.repetition([7] * 13) == pytest.approx(0.9)


def test_area_under_curve_equals_counting_pairs():
    rng = np.random.default_rng(0)
    positives, negatives = rng.integers(0, 6, 30).tolist(), rng.integers(0, 6, 17).tolist()
    wins = sum((a > b) + 0.5 * (a == b) for a in positives for b in negatives)
    assert metrics.area_under_curve(positives, negatives) == pytest.approx(wins / 30 / 17)
    assert metrics.area_under_curve(positives, []) is None


def test_sequence_reward_is_the_mean_over_the_rollout():
    rollouts = [rollout([5, 6, 7], reward=1.0), rollout([8], reward=0.0)]
    batch = collate(rollouts)
    table = {
        "reward/mean": torch.tensor([-1.0, -2.0, -3.0, -4.0]),
        "kl/reverse": torch.tensor([1.0, 2.0, 3.0, 4.0]),
    }
    assert metrics.sequence_rewards(table, batch.rows, 2) == [-2.0, -4.0]
    record = metrics.summarise_rollouts(rollouts, table, batch.rows)
    assert record["sequence_reward"] == pytest.approx(-3)
    assert record["sequence_reward/auroc"] == 1
    assert record["kl/reverse_sequence"] == pytest.approx(5)
    assert record["rollout/length"] == 2


def test_stop_mass_is_the_union_of_both_sides_ids_at_the_last_position():
    p = random_logprobs(rows=3)
    table = metrics.stop_masses(
        p, p, metrics.last_positions(torch.tensor([0, 0, 1])), frozenset({1, 4, 999})
    )
    mass = table["rollout/eos_mass_student"]
    assert mass[0].isnan()
    for row in (1, 2):
        assert mass[row].item() == pytest.approx((p[row, 1].exp() + p[row, 4].exp()).item())


def test_own_stops_are_told_where_the_student_ended_by_itself_and_nowhere_else():
    p, q = random_logprobs(rows=3), random_logprobs(rows=3, seed=1)
    reward = torch.tensor([-1.0, -2.0, -3.0])
    table = metrics.own_stops(p, q, reward, torch.tensor([False, True, False]), frozenset({1}))
    assert table["stop/student"][1].item() == pytest.approx(p[1, 1].exp().item())
    assert table["stop/teacher"][1].item() == pytest.approx(q[1, 1].exp().item())
    assert table["stop/reward"][1] == -2
    for values in table.values():
        assert values[[0, 2]].isnan().all()


def test_overlap_uses_at_most_an_eighth_of_the_vocabulary():
    assert metrics.overlap_k(16, 32) == 4
    assert metrics.overlap_k(16, 50_000) == 16
    assert metrics.overlap_k(16, 5) == 1
