"""Nothing is left on the CPU where models are on another device."""

import pytest
import torch

from elsewhere import DEVICE, elsewhere
from tutelage.training import train


def test_the_pretended_device_refuses_what_a_real_one_refuses(monkeypatch):
    with elsewhere(monkeypatch):
        there, here = torch.ones(3, device=DEVICE), torch.ones(3)
        assert (there + 1).device == DEVICE
        assert (there + 1).cpu().device.type == "cpu"
        assert there[torch.tensor([0, 1])].device == DEVICE
        assert (here.to(DEVICE) + there).sum().item() == 6
        for wrong in (
            lambda: there + here,
            lambda: torch.isin(there, here),
            lambda: here[torch.tensor([0, 1], device=DEVICE)],
            lambda: there.numpy(),
        ):
            with pytest.raises((RuntimeError, TypeError), match="cuda"):
                wrong()


def test_a_step_trains_there(settings, monkeypatch):
    with elsewhere(monkeypatch):
        train(settings(run={"steps": 2}))


@pytest.mark.parametrize(
    "objective",
    [
        {"type": "full", "weight": {"type": "teachability"}, "brake": {"coefficient": 0.1}},
        {"type": "top_k", "k": 4, "support": "union", "weight": {"type": "teacher_entropy"}},
        {"type": "sampled"},
    ],
)
def test_what_a_step_needs_to_know_is_there(settings, monkeypatch, objective):
    with elsewhere(monkeypatch):
        train(settings(objective=objective, run={"steps": 1}, evaluation={"every": 1}))
