"""tutelage completion"""

from collections.abc import Sequence
from typing import Annotated

import tyro

from tutelage.cli.arguments import parse


def run(words: Sequence[str]) -> None:
    """Read the arguments and call the verb."""
    parse(completion, words)


def completion(shell: Annotated[str, tyro.conf.Positional]) -> None:
    """Print a script that completes verbs, flags, settings and their values in your shell.

    Keep it where the shell looks, and start a new shell:

      tutelage completion bash > ~/.local/share/bash-completion/completions/tutelage
      tutelage completion zsh > ~/.zfunc/_tutelage      (fpath+=~/.zfunc before compinit)
      tutelage completion fish > ~/.config/fish/completions/tutelage.fish

    Args:
        shell: bash, zsh or fish.
    """
    from tutelage.cli.completing import completion as run_completion

    print(run_completion(shell), end="")
