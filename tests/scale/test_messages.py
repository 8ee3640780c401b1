"""What ranks tell each other arrives, and where they compute; threads stand for processes."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tutelage.errors import MachineError
from tutelage.ranks import Ranks
from tutelage.ranks.beginning import require_own_gpus
from tutelage.ranks.cores import on_own_cores, share
from tutelage.ranks.group import AgreedFullMemory, AgreedStop
from tutelage.ranks.sharing import gather_rollouts
from tutelage.types import Prompt, Rollout


class Threads(Ranks):
    """Ranks of one process; `rounds` counts what is sent."""

    def _told(self, content, room):
        self.table[self.rank] = bytes(content).ljust(room, b"\0")
        assert len(self.table[self.rank]) == room
        self.barrier.wait(10)
        said = list(self.table)
        self.barrier.wait(10)
        self.rounds += 1
        return said


def together(work, size=3):
    """`work(ranks)` on each of them; their results, and the rounds of messages."""
    table, barrier = [None] * size, threading.Barrier(size)
    ranks = [Threads(rank, size) for rank in range(size)]
    for one in ranks:
        one.table, one.barrier, one.rounds = table, barrier, 0
    with ThreadPoolExecutor(size) as pool:
        found = list(pool.map(work, ranks))
    return found, {one.rounds for one in ranks}


@pytest.mark.parametrize("lengths", [(0, 0, 0), (0, 1015, 7), (1016, 0, 1), (5, 70_000, 2000)])
def test_messages_of_all_lengths_arrive_and_short_ones_in_one_round(lengths):
    said = [bytes([rank + 1]) * length for rank, length in enumerate(lengths)]
    found, rounds = together(lambda ranks: ranks.exchange(said[ranks.rank]))
    assert found == [said] * 3
    assert rounds == {1 if max(lengths) <= 1015 else 2}


@pytest.mark.parametrize("length", [4, 5000])
def test_a_rank_that_stops_or_is_full_is_heard_whatever_the_others_send(length):
    def work(ranks):
        try:
            if ranks.rank == 1:
                ranks.tell_stop("SIGTERM")
            if ranks.rank == 2:
                ranks.tell_full_memory(RuntimeError("no room"))
            ranks.exchange(bytes(length))
        except (AgreedStop, AgreedFullMemory) as told:
            return type(told), str(told)
        return None

    assert together(work)[0] == [(AgreedStop, "SIGTERM")] * 3


def test_rollouts_of_all_ranks_arrive_as_they_were_in_the_order_of_the_prompts():
    prompts = {str(i): Prompt(id=str(i), text=f"é {i}", answer="1") for i in range(7)}
    plain = Rollout(
        prompt=prompts["0"],
        index=0,
        prompt_ids=(5, 2**31),
        completion_ids=(1, 2, 3),
        logprobs=(-0.1, float("nan"), -1e-17),
        finish_reason="stop",
        text="ünd\u2028 so",
        policy_step=3,
        reward=1.0,
        has_answer=True,
    )
    kinds = [
        {},
        {"teacher_prompt_ids": (), "reward": None, "has_answer": None, "source": "teacher"},
        {"teacher_prompt_ids": (4, 4), "completion_ids": (), "logprobs": (), "text": ""},
    ]
    made = [
        [replace(plain, prompt=prompt, index=i, **kinds[(place + i) % 3]) for i in range(2)]
        for place, prompt in enumerate(prompts.values())
    ]

    def work(ranks):
        own = [rollout for group in ranks.deal(made) for rollout in group]
        return gather_rollouts(ranks, own, 2, prompts)

    expected = [rollout for group in made for rollout in group]
    for size in (2, 3):
        for found in together(work, size)[0]:
            assert repr(found) == repr(expected)  # nan is not nan
            assert all(
                there.prompt is here.prompt for there, here in zip(found, expected, strict=True)
            )


def test_every_core_belongs_to_one_rank():
    for count in range(1, 9):
        cores = list(range(3, 3 + count))
        for size in range(1, count + 1):
            parts = [share(cores, place, size) for place in range(size)]
            assert [core for part in parts for core in part] == cores
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="one core"
)
def test_ranks_of_a_host_keep_to_cores_of_their_own_as_long_as_they_train():
    before = sorted(os.sched_getaffinity(0))

    def inside(hosts, cores, threads=1):
        ranks = Ranks(1, len(hosts), hosts)
        ranks.gather_json = lambda own: cores(own)
        with on_own_cores(ranks, threads):
            return sorted(os.sched_getaffinity(0))

    try:
        assert inside(("a", "a"), lambda own: [own, own]) == before[len(before) // 2 :]
        assert sorted(os.sched_getaffinity(0)) == before
        # Alone on its host, placed by the launcher already, or with more threads than cores.
        assert inside(("a", "b"), lambda own: [own, own]) == before
        assert inside(("a", "a"), lambda own: [own[:1], own]) == before
        assert inside(("a", "a"), lambda own: [own, own], threads=len(before)) == before
    finally:
        os.sched_setaffinity(0, before)


def test_ranks_that_were_given_one_gpu_are_told_so(monkeypatch):
    monkeypatch.setattr(
        "tutelage.ranks.beginning.choose_device", lambda name, role: torch.device(name)
    )
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda gpu: SimpleNamespace(uuid=gpu.index)
    )

    def begin(devices):
        def work(ranks):
            ranks.hosts = ("one", "one", "two")
            require_own_gpus(ranks, devices[ranks.rank])

        together(work)

    begin(["cuda:0", "cuda:1", "cuda:2"])
    begin(["cpu", "cpu", "cpu"])
    with pytest.raises(MachineError, match="ranks 0 and 2 were given one GPU on two"):
        begin(["cuda:0", "cuda:1", "cuda:0"])
