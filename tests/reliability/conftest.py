"""Processes that fail on purpose, and the run they belong to."""

import pytest

from helpers import tiny_run
from tutelage.config import dump_config
from zygotes import Zygote


@pytest.fixture(scope="session")
def zygote(tmp_path_factory):
    made = Zygote(tmp_path_factory.mktemp("zygote"))
    yield made
    with made.process:  # closes its pipes, at which it ends
        pass


@pytest.fixture
def settings(gpt2_pair, tmp_path):
    return tiny_run(tmp_path, *gpt2_pair, lr=3e-3)


@pytest.fixture
def written(settings, tmp_path):
    """The settings as a YAML file, changed as `settings` changes them."""

    def write(name="run.yaml", **changes):
        path = tmp_path / name
        path.write_text(dump_config(settings(**changes)))
        return path

    return write
