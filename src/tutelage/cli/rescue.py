"""tutelage rescue: one module a recipe, imported when it is called"""

from collections.abc import Sequence
from importlib import import_module

from tutelage.errors import UsageError, did_you_mean

RECIPES = {
    "cold-start": "the student imitates the teacher's answers before it is distilled",
    "controls": "did it distil? the run beside matched controls, over several seeds",
    "prompts": "prompts without leaks and copies, in the teacher's template, that suit the pair",
}
"""The recipes, each with what it does; `cli/rescue_NAME.py` reads its arguments."""


def run(words: Sequence[str]) -> int:
    """Read the arguments and call the recipe."""
    if not words or words[0] in ("-h", "--help"):
        print(
            "usage: tutelage rescue RECIPE [options]        tutelage rescue RECIPE --help\n\n"
            + "\n".join(f"  {name:12} {what}" for name, what in RECIPES.items())
        )
        return 0
    if words[0] not in RECIPES:
        raise UsageError(
            f"there is no rescue recipe {words[0]!r}. {did_you_mean(words[0], RECIPES)}"
        )
    module = import_module(f"tutelage.cli.rescue_{words[0].replace('-', '_')}")
    return module.run(words[1:]) or 0
