"""tutelage eval"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tutelage.cli.arguments import parse, show
from tutelage.errors import TutelageError, UsageError


def run(words: Sequence[str]) -> None:
    """Read the arguments and call the verb."""
    parse(eval_, words)


def eval_(
    model: Annotated[Path, tyro.conf.Positional],
    *,
    prompts: str,
    revision: str | None = None,
    verifier: str = "",
    samples: int = 4,
    k: tuple[int, ...] = (1,),
    max_new_tokens: int = 512,
    temperature: float = 0.7,
    top_p: float = 0.95,
    seed: int = 0,
    server: str | None = None,
    key_env: str | None = None,
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
    engine: Literal["local", "ray"] = "local",
    workers: int = 2,
    address: str | None = None,
    cpus: float = 1.0,
    gpus: float = 0.0,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Measure a model on prompts with answers: avg@n and pass@k with 95 % intervals.

    Args:
        model: directory of the model or LoRA adapter, or owner/name on a hub.
        prompts: a .jsonl, .json, .csv or .parquet file, hub:OWNER/NAME@COMMIT?split=test, or
            reasoning_gym:NAME?size=100&seed=0.
        revision: branch, tag or commit on the hub.
        verifier: exact, numeric, math, reasoning_gym, pattern:REGEX with one group, or
            function:FILE.py:NAME; prompts of reasoning-gym bring their own.
        samples: completions of each prompt.
        k: values of pass@k.
        max_new_tokens: most tokens of a completion.
        temperature: sampling temperature; 0 is greedy.
        top_p: nucleus kept when sampling.
        seed: decides the samples.
        server: address of a vLLM server that samples; the directory then gives the tokenizer alone.
        key_env: NAME of the environment variable that holds the server's API key.
        output: file for one JSON line a question, with the samples as text.
        engine: who draws the samples: this process, or workers that Ray places; they are the same.
        workers: how many Ray places.
        address: ray://HOST:10001, HOST:6379 or auto; without it Ray is started on this machine.
        cpus: processors of each worker.
        gpus: accelerators of each worker.
        as_json: print one JSON object on stdout.
    """
    from tutelage.cli.progress import say
    from tutelage.config import DataConfig, ModelConfig, RayEngine, section
    from tutelage.evaluation import evaluate_model

    kind, _, value = verifier.partition(":")
    named = {"function": "path"}.get(kind, "pattern")
    if kind in _WITH_A_VALUE and not value:
        raise UsageError(f"--verifier {kind} needs more: {_WITH_A_VALUE[kind]}")
    tagged = {"type": kind, **({named: value} if value else {})} if kind else None
    held = {"cpus": cpus, "gpus": gpus}
    placed = {"address": address, "workers": workers, "student": held}
    where = None if server is None else {"url": server, "key_env": key_env}
    try:
        result = evaluate_model(
            section(ModelConfig, {"path": str(model), "revision": revision, "server": where}),
            section(DataConfig, {"prompts": prompts, "verifier": tagged}),
            samples=samples,
            ks=k,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            output=output,
            engine=None if engine == "local" else section(RayEngine, placed),
            tell=lambda text: say(f"{text}."),
        )
    except TutelageError as error:
        raise type(error)(_in_flags(str(error))) from None
    show(result, as_json)


_WITH_A_VALUE = {
    "pattern": r"'pattern:REGEX' with one group around the answer, as in 'pattern:Answer: (\w+)'",
    "function": "function:FILE.py:NAME",
}
_FLAGS = {
    ", or leave data.verifier out": "",
    "data.verifier.pattern": "--verifier pattern",
    "data.verifier.path": "--verifier function",
    "data.verifier": "--verifier",
    "rollout.max_new_tokens": "--max-new-tokens",
    "max_new_tokens": "--max-new-tokens",
}


def _in_flags(text: str) -> str:
    """What is said of settings, said of the flags that stand for them here."""
    for setting, flag in _FLAGS.items():
        text = text.replace(setting, flag)
    return text
