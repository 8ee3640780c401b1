"""Shared fixtures. Shapes annotated in tutelage.ops are checked at run time in every test."""

import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job, as are its runs
    signal.signal(signal.SIGINT, signal.default_int_handler)

from jaxtyping import install_import_hook

install_import_hook("tutelage.ops", "typechecker.check")

import pytest
import torch

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
        "--screenshots",
        default=str(Path(__file__).parents[1] / "build" / "screenshots"),
        help="folder for pictures of the pages that tests open in a browser",
    )


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
