"""Time for the long profile, and a finished run to damage."""

import shutil
from pathlib import Path

import pytest
from fuzzing import LONG, Fuzz

from helpers import tiny_run
from tutelage.training import train

TEN_MINUTES = 600.0
_count = 1
_fed: list[tuple[str, Fuzz]] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    global _count
    _count = max(1, sum("fuzz" in getattr(item, "fixturenames", ()) for item in items))


@pytest.fixture
def fuzz(request: pytest.FixtureRequest):
    feeder = Fuzz(TEN_MINUTES / _count)
    yield feeder
    _fed.append((request.node.name, feeder))


def pytest_terminal_summary(terminalreporter) -> None:
    if LONG and _fed:
        for name, feeder in _fed:
            terminalreporter.write_line(f"{feeder.examples:8,} examples  {name}")
        total = sum(feeder.examples for _, feeder in _fed)
        refused = sum(feeder.refused for _, feeder in _fed)
        terminalreporter.write_line(f"{total:8,} examples in all, {refused:,} of them refused")


@pytest.fixture(scope="session")
def finished_run(gpt2_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    return train(tiny_run(folder, *gpt2_pair, lr=3e-3)()).run


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return shutil.copytree(finished_run, tmp_path / "run")
