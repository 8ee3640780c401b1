"""Shared fixtures. Shapes annotated in tutelage.ops are checked at run time in every test."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job, as are its runs
    signal.signal(signal.SIGINT, signal.default_int_handler)

from jaxtyping import install_import_hook

install_import_hook("tutelage.ops", "typechecker.check")

import pytest
import torch

from elsewhere import elsewhere
from helpers import save_tiny_pair

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--data-dir",
        default=str(Path(__file__).parents[2] / "shared" / "data"),
        help="folder with the real question sets",
    )
    parser.addoption(
        "--chaos-seed", type=int, default=1, help="when and where the chaos run is killed"
    )
    parser.addoption(
        "--elsewhere",
        action="store_true",
        help="models go to a pretended device, so that tensors left on the CPU are found",
    )
    parser.addoption(
        "--screenshots",
        default=str(Path(__file__).parents[1] / "build" / "screenshots"),
        help="folder for pictures of the pages that tests open in a browser",
    )


@pytest.fixture(autouse=True)
def _elsewhere(request: pytest.FixtureRequest) -> Iterator[None]:
    if not request.config.getoption("--elsewhere"):
        yield
        return
    with pytest.MonkeyPatch.context() as patch, elsewhere(patch):
        yield


@pytest.fixture(scope="session")
def data_dir(request: pytest.FixtureRequest) -> Path:
    folder = Path(request.config.getoption("--data-dir"))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} does not exist")
    return folder


@pytest.fixture(scope="session")
def gpt2_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Student and teacher of another architecture and tokenizer than the embedded pair."""
    return save_tiny_pair(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def ray_here() -> Iterator[Any]:
    """One Ray instance for all tests, on loopback, with room for four processors' workers."""
    paths = [str(Path(__file__).parent / "fan_out"), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        import ray

        from tutelage.runs.interrupts import held_signals

        with held_signals():
            ray.init(
                num_cpus=4,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                object_store_memory=2**27,
                _system_config={"worker_niceness": 0},
            )
    yield ray
    with held_signals():
        ray.shutdown()
