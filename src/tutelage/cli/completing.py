"""What a shell completes: the words that the help pages name, as a script that needs no Python."""

import io
import re
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress

from tutelage.cli import VERBS
from tutelage.cli.arguments import settings_help
from tutelage.errors import UsageError, did_you_mean

SHELLS = ("bash", "zsh", "fish")

_OPTION = re.compile(r"(?m)^[│|]? {1,2}(-.*)")
_FLAG = re.compile(r"(?<![\w-])--?[A-Za-z][\w.-]*")
_CHOICES = re.compile(r"(--[\w.-]+) \{(\w+(?:,\w+)+)\}")
_SETTING = re.compile(r"(?m)^  (--[\w.]+)  ((?:.+\n?)(?:^ {8}.+\n?)*)")
_NAMES = re.compile(r"(\w+(?: \| \w+)+)(?: \[[^\]]*\])?$")

_BASH = """\
# bash completion of tutelage; made by `tutelage completion bash`
_tutelage() {{
    local line="${{COMP_WORDS[*]:1:COMP_CWORD-1}}" words=
    COMPREPLY=()
    case "$2" in -*) line="$line -" ;; esac
    case "$line" in
{cases}
    esac
    [ -z "$words" ] || COMPREPLY=($(compgen -W "$words" -- "$2"))
}}
complete -o default -F _tutelage tutelage
"""

_ZSH = """\
#compdef tutelage
# zsh completion of tutelage; made by `tutelage completion zsh`
_tutelage() {{
    local line="${{(j: :)words[2,CURRENT-1]}}" words_=
    case "$words[CURRENT]" in -*) line="$line -" ;; esac
    case "$line" in
{cases}
    esac
    if [ -n "$words_" ]; then compadd -- ${{=words_}}; else _files; fi
}}
if [ "$funcstack[1]" = _tutelage ]; then _tutelage; else compdef _tutelage tutelage; fi
"""

_FISH = """\
# fish completion of tutelage; made by `tutelage completion fish`
function __tutelage
    set -l before (commandline -opc)
    set -l line (string join ' ' -- $before[2..-1])
    string match -q -- '-*' (commandline -ct); and set line "$line -"
    switch "$line"
{cases}
        case '*'
            __fish_complete_path (commandline -ct)
    end
end
complete -c tutelage -f -a '(__tutelage)'
"""


def completion(shell: str) -> str:
    """The verb `completion`: a script for bash, zsh or fish that completes what can be typed.

    Raises:
        UsageError: a shell that it is not written for.
    """
    if shell not in SHELLS:
        raise UsageError(f"there is no completion for {shell!r}. {did_you_mean(shell, SHELLS)}")
    # The first pattern that fits the words typed so far decides; `-` is a flag being typed.
    offered = _offered()
    if shell == "fish":
        cases = [
            f"        case '{pattern}'\n            printf '%s\\n' {' '.join(words)}"
            for pattern, words in offered.items()
        ]
        return _FISH.format(cases="\n".join(cases))
    name = "words" if shell == "bash" else "words_"
    cases = [
        f'    {_quoted(pattern)}) {name}="{" ".join(words)}" ;;'
        for pattern, words in offered.items()
    ]
    return (_BASH if shell == "bash" else _ZSH).format(cases="\n".join(cases))


def _offered() -> dict[str, Sequence[str]]:
    """Words to offer by what was typed before them, as patterns of a shell."""
    from tutelage.cli.export import ENGINES
    from tutelage.cli.rescue import RECIPES
    from tutelage.config import config_keys, preset_names

    keys = config_keys()
    settings = [f"--{key}" for key in keys.keys() | {key.removesuffix(".type") for key in keys}]
    first = {
        "": list(VERBS),
        "rescue": list(RECIPES),
        "export": list(ENGINES),
        "lab": ["all", "build", "list", "population"],
        "completion": SHELLS,
        "presets": preset_names(),
    }
    flags: dict[str, Sequence[str]] = {}
    chosen: dict[str, Sequence[str]] = {
        f"* {flag}": found[1].split(" | ")
        for flag, told in _SETTING.findall(settings_help())
        if (found := _NAMES.search(" ".join(told.split())))
    }
    commands = [v for v in VERBS if v not in ("rescue", "export", "lab")]
    commands += [f"rescue {recipe}" for recipe in RECIPES]
    commands += [*(f"export {engine}" for engine in ENGINES), "lab build", "lab population"]
    for words in (*commands, "lab SUITE"):
        page = _page(words.split())
        own = [f for line in _OPTION.findall(page) for f in _FLAG.findall(line)]
        own += re.findall(r"`(--[a-z-]+)", page)  # what a verb reads by itself
        if "--config" in own:
            own += settings
        pattern = words.removesuffix(" SUITE")
        flags[f"{pattern}* -"] = sorted(set(own))
        for flag, names in _CHOICES.findall(page):
            chosen[f"{pattern}* {flag}"] = names.split(",")
    flags[" -"] = ["--help", "--version"]
    return {**first, **chosen, **flags}


def _page(words: Sequence[str]) -> str:
    from tutelage.cli import main

    out = io.StringIO()
    with redirect_stdout(out), suppress(SystemExit):
        main([*words, "--help"])
    return out.getvalue()


def _quoted(pattern: str) -> str:
    """A pattern whose words stand as they are: `"eval"*" --engine"`."""
    return "*".join(f'"{part}"' if part else "" for part in pattern.split("*")) or '""'
