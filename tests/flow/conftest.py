"""A run on the tiny pair, ready to be changed."""

import pytest

from helpers import tiny_run


@pytest.fixture
def settings(gpt2_pair, tmp_path):
    return tiny_run(tmp_path, *gpt2_pair, lr=3e-3)
