"""The whole job against enumeration: nodes, rollouts, counts and pooled numbers."""

import re
from dataclasses import replace

import numpy as np
import pytest

from tutelage.alignment.bench import conclude, plant
from tutelage.alignment.growing import records_of
from tutelage.alignment.job import prepare_bench
from tutelage.alignment.measured import gather, node_scores
from tutelage.alignment.nodes import REST
from tutelage.alignment.plan import plan_of
from tutelage.alignment.tree import load_tree, save_tree
from tutelage.config import Config, parse_config
from tutelage.errors import DataError, UsageError


def run(bench, tree):
    told = []
    records = records_of(bench, tree, heard=told.append)
    assert told == sorted(told)
    assert told[-1] == len(records) == len(tree.branches)
    return records


def exact(world, node, tree):
    """The true success after each child of a node."""
    spine = tree.spines[node.spine].rollout
    question = int(spine.prompt.id[1:])
    prefix = spine.completion_ids[: node.depth]
    p = world.next_tokens(world.student, question, prefix)
    s = np.array([world.success(question, (*prefix, k)) for k in range(len(p))])
    ids = [k for k in node.children if k != REST]
    found = [s[k] for k in ids]
    if REST in node.children:
        others = np.delete(p, ids)
        found.append(float(others @ np.delete(s, ids) / others.sum()))
    return np.array(found)


@pytest.mark.parametrize("use_backup", [False, True])
@pytest.mark.parametrize("least", [0.02, 0.2])
def test_success_after_each_child_is_unbiased(world, use_backup, least):
    """z-scores of all children: |mean| below 4.5 standard errors, spread as the variance says."""
    misses, variances = [], []
    for seed in range(8):
        bench = world.bench(seed, least=least, budget=4000, rollouts=8)
        tree = plant(bench)
        nodes = gather(tree, run(bench, tree), use_backup=use_backup)
        for row, node in enumerate(nodes.states):
            k = len(node.children)
            misses.append(nodes.estimate.s[row, :k] - exact(world, node, tree))
            variances.append(nodes.estimate.variance[row, :k])
    miss, variance = np.concatenate(misses), np.concatenate(variances)
    settled = variance == 0
    assert settled.any()
    assert (~settled).sum() > 300
    # Children of one spine share rollouts, so the spread of the mean is taken over blocks.
    parts = [part.mean() for part in np.array_split(miss, 24)]
    assert abs(np.mean(parts)) < 4.5 * np.std(parts, ddof=1) / np.sqrt(len(parts))
    assert np.mean(miss**2) == pytest.approx(np.mean(variance), rel=0.3)


def test_a_settled_child_is_exact_and_costs_nothing(world):
    bench = world.bench(budget=3000)
    tree = plant(bench)
    found = 0
    for node, counts, outcomes in zip(tree.nodes, tree.rollouts, tree.settled, strict=True):
        truth = exact(world, node, tree)
        for child, count, outcome, s in zip(node.children, counts, outcomes, truth, strict=True):
            over = child == 0 or node.depth == 3
            assert (outcome is not None) == (over and child != REST)
            assert (count == 0) == (outcome is not None)
            if outcome is not None:
                assert outcome == s
                found += 1
    assert found > 10


def test_weighted_sums_are_those_of_all_visits(world):
    """Sums of w <g,D>, w U and w Adv against enumeration over 80 designs; |z| below 4."""
    truth = np.zeros((2, 3))
    for question in range(len(world.questions)):
        for rho, p, q, s in world.states(question):
            g = p * (s - p @ s)
            ratio = np.log(p) - np.log(q)
            for row, move in enumerate((-p * (ratio - p @ ratio), q - p)):
                truth[row] += rho * np.array([g @ move, g @ g, (q - p) @ s])
    totals = []
    for seed in range(80):
        bench = world.bench(seed, samples=6, spines=3, budget=1100, rollouts=4, window=2)
        tree = plant(bench)
        assert max(node.depth for node in tree.nodes) > 1
        assert any(node.chance < 0.9 for node in tree.nodes)
        nodes = gather(tree, run(bench, tree))
        both = [node_scores(nodes, 0, objective)[0] for objective in (0, 1)]
        sums = [[one.dot, one.square, one.advantage] for one in both]
        totals.append((np.array(sums) * nodes.weights).sum(-1))
    totals = np.array(totals)
    z = (totals.mean(0) - truth) / (totals.std(0, ddof=1) / np.sqrt(len(totals)))
    assert np.abs(z).max() < 4, z


def test_one_batch_and_one_rollout_at_a_time_count_alike(world):
    bench = world.bench(budget=2500)
    one_by_one = replace(bench.student, batch_size=1)
    alone = replace(bench, student=one_by_one, sampler=one_by_one)
    tree = plant(bench)
    key = lambda record: record["unit"]  # noqa: E731
    together, apart = (sorted(run(b, tree), key=key) for b in (bench, alone))
    for one, other in zip(together, apart, strict=True):
        assert one["counts"] == other["counts"]


def test_the_budget_holds_and_more_of_it_buys_nodes_before_rollouts(world):
    nodes = []
    for budget in (1500, 3000, 30000):
        bench = world.bench(budget=budget, window=2, rollouts=8, cap=20)
        tree = plant(bench)
        spent = tree.natural_tokens + sum(record["tokens"] for record in run(bench, tree))
        assert spent < 1.3 * budget  # lengths vary, so what is expected is not what comes
        nodes.append(len(tree.nodes))
    assert nodes == sorted(nodes)
    assert nodes[0] < nodes[-1]
    assert max(max(counts) for counts in tree.rollouts) == 20


def test_a_budget_below_the_floor_names_what_it_needs(world):
    with pytest.raises(UsageError, match=r"not enough: align.budget 200 tokens .* about [\d,]+"):
        plant(world.bench(budget=200))


def test_the_smallest_budget_is_what_nodes_drawn_by_size_cost(tree):
    """States where the student is unsure have more children, and are drawn more often."""
    tree["align"] |= {"questions": 12, "spines": 4, "samples": 8, "window": 14}
    settings = Config(**tree)
    bench = prepare_bench(settings)
    with pytest.raises(UsageError, match="not enough") as refused:
        plant(replace(bench, settings=settings.align.model_copy(update={"budget": 1000})))
    needed = int(re.search(r"about ([\d,]+)", str(refused.value))[1].replace(",", ""))
    spent = []
    for seed in range(5):  # other draws of nodes and spines than those of the message
        floor = settings.align.model_copy(update={"budget": needed + needed // 5})
        plan = plan_of(plant(replace(bench, settings=floor, seed=seed)))
        spent.append(plan["natural_tokens"] + plan["expected_tokens"])
    assert np.mean(spent) < 1.2 * needed


def test_a_tree_is_the_same_after_a_round_to_disk(world, tmp_path):
    bench = world.bench(least=0.2)
    tree = plant(bench)
    save_tree(tree, tmp_path)
    again = load_tree(tmp_path, {p.prompt.id: p.prompt for p in bench.prompts})
    assert plan_of(again) == plan_of(tree)
    records = run(bench, tree)
    assert run(bench, again) == records
    assert conclude(bench, again, records).to_dict() == conclude(bench, tree, records).to_dict()


@pytest.mark.parametrize(("answer", "verdict"), [("a|b", "right"), ("nothing", "wrong")])
def test_a_verifier_that_never_differs_is_told(world, answer, verdict):
    bench = world.bench()
    always = replace(bench, verify=lambda prompt, text: float(answer == "a|b"))
    with pytest.raises(DataError, match=f"all 24 natural rollouts were judged {verdict}"):
        plant(always)


def test_rollouts_nobody_can_judge_count_nowhere(world):
    bench = world.bench(budget=3000)
    judge = bench.verify
    doubtful = replace(
        bench, verify=lambda prompt, text: None if "c" in text else judge(prompt, text)
    )
    tree = plant(doubtful)
    records = run(doubtful, tree)
    found = conclude(doubtful, tree, records)
    assert found.unknown > 0
    assert found.to_dict()["unknown"] == found.unknown
    judged = sum(sum(row[4:]) for record in records for row in record["counts"])
    assert judged > 0


def test_a_teacher_that_is_the_student_has_no_move_and_no_advantage(world):
    bench = world.bench(budget=3000)
    same = replace(bench, candidates=[replace(bench.candidates[0], model=bench.student)])
    tree = plant(same)
    pooled = conclude(same, tree, run(same, tree)).pooled["teacher", "objective"]
    assert pooled.dot.value == pytest.approx(0, abs=1e-9)
    assert pooled.advantage.value == pytest.approx(0, abs=1e-9)
    assert pooled.mean_cosine is None


def test_a_further_teacher_without_a_say_of_its_own_costs_no_rollouts(world):
    """All share one tree: a second copy of a teacher asks for nothing the first did not."""
    bench = world.bench(budget=2000, least=0.2, window=2)
    twice = replace(
        bench, candidates=[*bench.candidates, replace(bench.candidates[0], name="again")]
    )
    one, both = plant(bench), plant(twice)
    assert [b.name for b in both.branches] == [b.name for b in one.branches]
    assert both.rollouts == one.rollouts
    assert [n.chance for n in both.nodes] == [n.chance for n in one.nodes]


def test_what_is_kept_of_a_branch_does_not_grow_with_its_rollouts(world):
    """Counts alone: a row a child at most, for the forced one and those below it."""
    bench = world.bench(budget=10**6, cap=60, floor=60)
    tree = plant(bench)
    children = dict.fromkeys(tree.spines, 0)
    for node in tree.nodes:
        children[node.spine] += len(node.children)
    records = run(bench, tree)
    assert sum(sum(row[4:]) for record in records for row in record["counts"]) >= 60 * len(records)
    for record in records:
        assert len(record["counts"]) <= children[record["spine"]]
        assert set(record) == {"unit", "spine", "tokens", "unknown", "counts"}


def test_the_budget_holds_where_teachers_move_most_at_the_costliest_states(tree):
    given = {**tree["align"], "questions": 12, "budget": 40000, "rollouts": 20, "floor": 20}
    planted = plant(prepare_bench(parse_config({**tree, "align": given})))
    assert planted.natural_tokens + planted.expected_tokens < 1.1 * 40000


def test_questions_add_up_to_the_whole_and_equal_teachers_are_not_told_apart(world):
    bench = world.bench(budget=2000, window=2)
    bench = replace(
        bench, candidates=[*bench.candidates, replace(bench.candidates[0], name="again")]
    )
    tree = plant(bench)
    records = run(bench, tree)
    found = conclude(bench, tree, records)
    nodes = gather(tree, records)
    weights = dict.fromkeys(nodes.questions, 0.0)
    for question, weight in zip(nodes.questions, nodes.weights, strict=True):
        weights[question] += weight
    for name in ("advantage", "dot"):
        parts = [weights[q] * by["teacher"][name] for q, by in found.questions.items()]
        whole = getattr(found.pooled["teacher", "objective"], name).value
        assert sum(parts) / sum(weights.values()) == pytest.approx(whole)
    assert set(found.best.values()) == {None}
    errors = [by["teacher"]["advantage_error"] for by in found.questions.values()]
    assert min(errors) > 0
