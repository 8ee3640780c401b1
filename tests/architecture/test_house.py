"""The house keeps its rules."""

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
