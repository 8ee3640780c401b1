import pytest

from helpers import tiny_run


@pytest.fixture
def settings(gpt2_pair, tmp_path):
    return tiny_run(tmp_path, *gpt2_pair, lr=1e-3)
