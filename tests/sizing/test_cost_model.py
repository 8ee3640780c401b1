"""The closed forms of a step's cost, against counting."""

import itertools
import json
import time

import numpy as np
import pytest
import torch

from helpers import save_tiny_llama, tiny_run
from tutelage.models.checkpoints import open_folder
from tutelage.models.loading import load_model
from tutelage.sizing.cost import Layout, Link, Rate, Speeds, Workload, step_cost
from tutelage.sizing.hosts import workload
from tutelage.sizing.lengths import (
    Lengths,
    always,
    expected_decoding,
    geometric,
    known_decoding,
    observed,
)
from tutelage.sizing.measuring import measure_profile
from tutelage.sizing.profiles import read_profile, write_profile
from tutelage.sizing.shapes import shape_of
from tutelage.training import train

LINK = Link(latency_s=1e-4, byte_s=1e-9, message_byte_s=4e-9)


def test_the_longest_of_some_completions_is_that_of_all_outcomes():
    lengths = Lengths((1.0, 0.6, 0.25))  # 1, 2 or 3 tokens
    p = {1: 0.4, 2: 0.35, 3: 0.25}
    for count in (1, 2, 4):
        outcomes = list(itertools.product(p, repeat=count))
        chance = [float(np.prod([p[x] for x in outcome])) for outcome in outcomes]
        ordered = np.array([sorted(outcome) for outcome in outcomes])
        expected = chance @ ordered
        assert lengths.longest(count) == pytest.approx(expected[-1])
        assert lengths.ordered(range(1, count + 1), count) == pytest.approx(expected)
    assert lengths.mean == pytest.approx(sum(k * v for k, v in p.items()))


def test_geometric_lengths_have_their_mean_and_observed_ones_theirs():
    for mean in (1, 3.5, 17, 40):
        lengths = geometric(mean, 40)
        assert lengths.mean == pytest.approx(mean)
        assert all(a >= b for a, b in itertools.pairwise(lengths.survival))
    with pytest.raises(ValueError, match="not between"):
        geometric(41, 40)
    drawn = [3, 5, 5, 9, 12]
    assert observed(drawn, 12).mean == pytest.approx(np.mean(drawn))
    assert observed(drawn, 12).cut(5).mean == pytest.approx(np.minimum(drawn, 5).mean())


def test_the_work_of_decoding_is_that_of_drawn_batches_on_average():
    """400 batches of 48 rows; the rows are an approximation, so within 5 %."""
    lengths, rng = geometric(14, 40), np.random.default_rng(0)
    survival = np.array([*lengths.survival, 0.0])
    drawn = rng.choice(np.arange(1, 41), p=survival[:-1] - survival[1:], size=(400, 48))
    counted = [known_decoding(row.tolist(), 10) for row in drawn]
    told = expected_decoding(lengths, 48, 10)
    for part in ("passes", "rows", "pairs"):
        mean = np.mean([getattr(c, part) for c in counted])
        assert getattr(told, part) == pytest.approx(mean, rel=0.05), part
    full = known_decoding([7] * 5, 3)
    assert (full.passes, full.rows, full.pairs) == (6, 30, 5 * sum(3 + t for t in range(1, 7)))
    assert expected_decoding(always(7), 5, 3) == full


def rates(**changes) -> Speeds:
    nothing = Rate()
    fields = dict.fromkeys(
        ("prefill", "decode", "teacher", "student", "head", "look", "optimizer", "record"), nothing
    )
    scalars = dict.fromkeys(("rollout_s", "answer_s", "disk_byte_s"), 0.0)
    return Speeds(**{**fields, **scalars, **changes})


def work(**changes) -> Workload:
    return Workload(
        **{
            "prompts": 8,
            "group_size": 2,
            "prompt_tokens": 5,
            "lengths": always(6),
            "decode_batch": 100,
            "micro_batch": 4,
            "chunk": 10,
            "pass_tokens": 0,
            "student_bytes": 4000,
            "trained": 1000,
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("part", "phase", "passes", "tokens"),
    [
        ("prefill", "prefill", 1, 8 * 5),
        ("decode", "decode", 5, 16 * 5),
        ("teacher", "teacher", 4, 16 * 11),
        ("student", "update", 4, 16 * 11),
        ("head", "head", 4 * 3, 16 * 6),
        ("look", "move", 1, 4 * 11),
        ("optimizer", "optimizer", 1, 1000),
        ("record", "record", 1, 16 * 6),
    ],
)
def test_each_part_of_a_step_of_equal_lengths_is_counted_by_hand(part, phase, passes, tokens):
    found = step_cost(work(), rates(**{part: Rate(1000.0, 1.0)}))
    assert found.seconds == pytest.approx({phase: 1000 * passes + tokens})
    assert found.limit == phase
    assert found.tokens == 96


def test_steps_that_are_decoded_together_share_the_passes_and_not_the_tokens():
    speeds = rates(prefill=Rate(1000.0, 1.0), decode=Rate(1000.0, 1.0), head=Rate(0.0, 1.0))
    alone, together = step_cost(work(), speeds), step_cost(work(together=4), speeds)
    assert together.seconds["prefill"] == pytest.approx(1000 / 4 + 8 * 5)
    assert together.seconds["decode"] == pytest.approx(1000 * 5 / 4 + 16 * 5)
    assert together.seconds["head"] == alone.seconds["head"]
    served = Layout(student_devices=1)
    synced = [step_cost(work(together=n), rates(disk_byte_s=1.0), served) for n in (1, 4)]
    assert synced[0].seconds["sync"] == pytest.approx(4 * synced[1].seconds["sync"])


def test_ranks_share_the_work_and_pay_for_what_they_tell_each_other():
    speeds = rates(student=Rate(0.0, 1.0), rollout_s=0.5)
    alone = step_cost(work(), speeds)
    two = step_cost(work(), speeds, Layout(ranks=2, kind="ddp", link=LINK))
    assert two.seconds["update"] == pytest.approx(alone.seconds["update"] / 2)
    assert two.seconds["record"] == pytest.approx(96 * 0.5)  # every rank reads all rollouts
    assert two.seconds["gradients"] == pytest.approx(4000 * 1e-9 + 1e-4)
    assert two.seconds["messages"] == pytest.approx((96 * 140 + 16 * 5 * 8) / 2 * 4e-9 + 8e-4)
    sharded = step_cost(work(), speeds, Layout(ranks=2, kind="fsdp2", link=LINK))
    assert sharded.seconds["gradients"] == pytest.approx((2 * 3 + 2) * (2000 * 1e-9 + 1e-4))
    with pytest.raises(ValueError, match="link"):
        step_cost(work(), speeds, Layout(ranks=2))


def test_prompts_are_read_once_where_that_saves_enough():
    speeds = rates(teacher=Rate(1000.0, 1.0))
    long = work(prompt_tokens=100, group_size=4, micro_batch=8)
    assert step_cost(long, speeds).seconds["teacher"] == pytest.approx(
        4 * (2 * 1000 + 2 * 100 + 8 * 6)
    )
    alone = work(prompt_tokens=100, group_size=4, micro_batch=8, shares=False)
    assert step_cost(alone, speeds).seconds["teacher"] == pytest.approx(4 * (1000 + 8 * 106))


def test_constants_are_those_of_the_code_that_is_counted():
    from tutelage import gradient, trainer
    from tutelage.models import prefixes
    from tutelage.ranks import group
    from tutelage.sizing import cost

    assert cost.PASS_FLOPS == gradient._PASS_FLOPS
    assert cost.PASS_FLOPS_ELSEWHERE == gradient._PASS_FLOPS_ELSEWHERE
    assert (cost.SHARED_SHARE, cost.SHARED_TOKENS) == (prefixes._SHARE, prefixes._TOKENS)
    assert (cost.MOVE_EVERY, cost.BUCKET) == (trainer.MOVE_EVERY, group._BUCKET)


def test_many_ordered_completions_are_quantiles():
    lengths = geometric(20, 100)
    few, many = (lengths.ordered([n // 4, n // 2, n], n) for n in (512, 513))
    assert many[:2] == pytest.approx(few[:2], abs=1)
    drawn = lengths.ordered(range(1, 1001), 1000)
    assert np.mean(drawn) == pytest.approx(lengths.mean, rel=0.02)
    assert always(9).ordered([1, 700], 1000) == [9, 9]


def test_stragglers_cost_what_the_slowest_rank_waits():
    lengths = geometric(10, 100)
    speeds = rates(decode=Rate(1.0))
    layout = Layout(ranks=4, kind="ddp", link=LINK)
    found = step_cost(work(lengths=lengths), speeds, layout)
    assert found.seconds["decode"] + found.seconds["stragglers"] == pytest.approx(
        lengths.longest(16) - 1, rel=1e-6
    )
    even = step_cost(work(), speeds, layout)
    assert even.seconds.get("stragglers", 0.0) == pytest.approx(0.0, abs=1e-9)


def test_a_served_teacher_scores_on_its_own_devices_and_its_answers_are_read():
    speeds = rates(teacher=Rate(0.0, 1.0), answer_s=0.25)
    here = step_cost(work(), speeds, Layout(ranks=4, kind="ddp", link=LINK))
    there = step_cost(
        work(listed=3), speeds, Layout(ranks=4, kind="ddp", link=LINK, teacher_devices=8)
    )
    assert there.seconds["teacher"] == pytest.approx(here.seconds["teacher"] / 2)
    assert there.seconds["answers"] == pytest.approx(4 * 11 * 4 * 0.25)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_a_token_keeps_for_the_backward_pass_is_what_torch_saves(tmp_path, checkpointing):
    folder = save_tiny_llama(tmp_path / "llama")
    shape = shape_of(open_folder(str(folder), "student"))
    model = load_model(load_settings(folder), "student")
    if checkpointing:
        from tutelage.models.loading import checkpoint_layers

        checkpoint_layers(model.model)
    assert shape.parameters == model.model.num_parameters()
    kept: dict[int, int] = {}
    weights = {w.untyped_storage().data_ptr() for w in model.model.parameters()}

    def save(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.is_floating_point():
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(0, 300, (4, 32))
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        states = model.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    told = 4 * shape.kept(checkpointing=False) * ids.numel()
    found = sum(kept.values())
    if checkpointing:  # outside the layers torch's hooks see the layers' inputs alone
        assert found < told / 2
        return
    assert states.requires_grad
    assert told == pytest.approx(found, rel=0.25)


def load_settings(folder):
    from tutelage.config import ModelConfig

    return ModelConfig(path=str(folder))


def test_a_profile_of_some_seconds_foretells_a_whole_step(tmp_path, gpt2_pair):
    """Within a factor of two of the processor's seconds: what a busy machine lets a test claim."""
    make = tiny_run(tmp_path, *gpt2_pair, lr=1e-6)
    config = make(evaluation={"every": 0, "teacher": 0}, run={"steps": 5, "save_every": 0})
    profile = measure_profile(config)
    write_profile(profile, tmp_path / "profile.json")
    assert read_profile(tmp_path / "profile.json") == profile
    json.loads((tmp_path / "profile.json").read_text())
    marks = []
    train(config, observer=lambda r: r["kind"] == "train" and marks.append(time.process_time()))
    took = float(np.median(np.diff(marks)))
    told = step_cost(
        workload(config, profile.prompt_tokens, profile.lengths, "cpu"), profile.speeds
    )
    assert took / 2 < told.step_s < 2 * took, (took, told.seconds)
