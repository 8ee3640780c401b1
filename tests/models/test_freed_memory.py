"""Memory that is freed and wanted again is not asked of the system anew."""

import ctypes
import json
import os
import subprocess
import sys

import pytest

from tutelage.models import pages

FAULTS = """
import json, resource, sys, torch
torch.set_num_threads(1)
from tutelage.models.pages import keep_pages

def rounds(count):
    for _ in range(count):
        chunks = [torch.zeros(2**21) for _ in range(12)]  # 96 MiB
        del chunks

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    rounds(10)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

kept = keep_pages()
rounds(3)
print(json.dumps([kept, faults()]))
"""
ON_GLIBC = sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "mallopt")


@pytest.fixture(autouse=True)
def forgotten():
    pages.keep_pages.cache_clear()
    yield
    pages.keep_pages.cache_clear()


@pytest.mark.skipif(not ON_GLIBC, reason="another allocator")
def test_pages_are_asked_for_once():
    environment = {k: v for k, v in os.environ.items() if k not in pages._SETTINGS}
    said = subprocess.run(
        [sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True
    )
    kept, faults = json.loads(said.stdout)
    assert kept
    assert faults < 1000  # 96 MiB are 24,576 pages, every time

    said = subprocess.run(
        [sys.executable, "-c", FAULTS],
        env=environment | {"MALLOC_TRIM_THRESHOLD_": str(32 * 2**20)},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = json.loads(said.stdout)
    assert not kept  # it was set by hand, and is left alone
    assert faults > 10_000


def test_systems_without_glibc_are_left_alone(monkeypatch):
    for name in pages._SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not pages.keep_pages()
    pages.keep_pages.cache_clear()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not pages.keep_pages()
