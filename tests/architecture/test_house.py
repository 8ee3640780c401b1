"""The house keeps its rules."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import yaml

from tutelage.config import parse_config

ROOT = Path(__file__).parents[2]


def test_imports_go_one_way():
    linter = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_every_recipe_is_a_valid_config():
    recipes = list((ROOT / "recipes").rglob("*.yaml"))
    assert recipes
    for recipe in recipes:
        parse_config(yaml.safe_load(recipe.read_text()), str(recipe))


def test_readme_offers_exactly_two_commands():
    text = (ROOT / "README.md").read_text()
    blocks = [block.split("```")[0] for block in text.split("```bash\n")[1:]]
    assert [line for line in blocks[0].splitlines() if line] == ["make demo", "make test"]


def test_every_promise_names_tests_that_exist():
    text = (ROOT / "docs" / "reliability.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert [int(row.split("|")[1]) for row in rows] == list(range(1, 41))
    named = [tuple(name.split("::")) for name in re.findall(r"`(\w+/\w+\.py::\w+)`", text)]
    assert len(named) >= 80
    known = {
        file: {
            node.name
            for node in ast.walk(ast.parse((ROOT / "tests" / file).read_text()))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        for file, _ in named
    }
    assert [(file, test) for file, test in named if test not in known[file]] == []


def test_every_guard_of_the_mutations_is_still_there():
    script = ROOT / "tests" / "mutations.py"
    done = subprocess.run([sys.executable, script, "--list"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
