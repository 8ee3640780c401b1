"""What an alignment keeps, from which it goes on."""

import json
import shutil

import pytest
from fuzzing import damaged

from helpers import tiny_run
from tutelage.alignment.job import align
from tutelage.alignment.tree import load_tree
from tutelage.data.prompts import load_prompts
from tutelage.runs.ledger import Ledger

PARITY = "def judge(prompt, text):\n    return len(text) % 2 == 0\n"


@pytest.fixture(scope="module")
def aligned(gpt2_pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("aligned")
    (folder / "parity.py").write_text(PARITY)
    verifier = {"type": "function", "path": f"{folder / 'parity.py'}:judge", "workers": 1}
    make = tiny_run(folder, *gpt2_pair, lr=1e-3)
    config = make(
        data={"verifier": verifier}, align={"budget": 4000, "questions": 4}, run={"seed": 3}
    )
    align(config, folder / "align")
    return config, folder / "align"


@pytest.mark.parametrize("name", ["tree.json", "spines.jsonl", "nodes.jsonl", "rollouts.jsonl"])
def test_any_file_of_an_alignment_is_whole_or_our_error(fuzz, aligned, tmp_path, name):
    config, done = aligned
    folder = shutil.copytree(done, tmp_path / "align")
    prompts = {p.id: p for p in load_prompts(config.data.prompts)}
    good = (done / name).read_bytes()
    units = {unit: Ledger(folder / "rollouts.jsonl")[unit] for unit in _units(folder)}

    def read(content):
        (folder / name).write_bytes(content)
        tree = load_tree(folder, prompts)
        if name != "rollouts.jsonl":
            assert json.loads((folder / "tree.json").read_text()) == json.loads(
                (done / "tree.json").read_text()
            )
        ledger = Ledger(folder / "rollouts.jsonl")
        assert all(ledger[record["unit"]] == units[record["unit"]] for record in ledger.records)
        assert tree.spines

    fuzz(read, damaged(good), examples=100)


def _units(folder):
    return [record["unit"] for record in Ledger(folder / "rollouts.jsonl").records]


def test_prompts_that_are_gone_are_told(aligned):
    _, done = aligned
    with pytest.raises(Exception, match="no longer hold") as caught:
        load_tree(done, {})
    assert caught.value.exit_code == 2
