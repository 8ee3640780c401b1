"""From a check to the one command to run next: one that works when it is pasted."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tutelage.config import Config, PromptSet
from tutelage.config import Function as FunctionVerifier
from tutelage.config import Pattern as PatternVerifier
from tutelage.diagnose.static import teachers_of

if TYPE_CHECKING:
    from tutelage.diagnose.checking import Check
    from tutelage.diagnose.looks import Look

DEFAULT = ("-c", "CONFIG.yaml")
_MORE = 4
_LEAST_BUDGET = 25_000
"""Decoded tokens that four times the budget starts from."""

Words = Sequence[str]


def next_command(found: "Check", arguments: Words = DEFAULT) -> str:
    """What to run now; `arguments` are the words that named the settings that were checked."""
    own, best = found.looks[0], found.ranking[0]
    if own.verdict.word == "go":
        return _train(found, arguments, {})
    if best.verdict.word == "go" and (instead := _in_its_place(found, best)) is not None:
        return _train(found, arguments, instead)
    match own.verdict.word:
        case "cold-start":
            return _cold_start(found, arguments)
        case "unknown":
            return _learn_more(found, own.verdict.reasons[0].name, arguments)
        case "change-prompts":
            return _look_at_prompts(found, own.verdict.reasons[0].name, arguments)
        case _:
            return _look_elsewhere(found, arguments)


def _train(found: "Check", arguments: Words, changes: Mapping[str, Any]) -> str:
    folder = found.config.run.dir
    if (free := _free(folder)) != folder:
        changes = {**changes, "run.dir": free}
    return _command("train", arguments, changes)


def _cold_start(found: "Check", arguments: Words) -> str:
    """Imitation, and distillation from there with the same settings."""
    folder = found.config.run.dir
    output = shlex.join(["--output", _free(f"{folder}-cold-start")])
    free = _free(folder)
    then = ["--then", "train", *(["--run.dir", free] if free != folder else [])]
    return f"{_command('rescue cold-start', arguments, {})} {output} {shlex.join(then)}"


def _in_its_place(found: "Check", best: "Look") -> dict[str, Any] | None:
    """Settings with which a run takes another teacher or other prompts; None where it cannot."""
    from tutelage.diagnose.checking import OWN

    config, changes = found.config, dict[str, Any]()
    if best.prompt_set != OWN:
        changes |= _prompts(config, config.check.prompt_sets[best.prompt_set])
    if best.teacher == "teacher":
        return changes
    if (named := teachers_of(config).get(best.teacher)) is not None:
        return changes | {"teacher": named.model_dump(mode="json", exclude_defaults=True)}
    context = best.teacher.removeprefix("self:")
    if context == "summary":  # nobody writes any while a student trains
        return None
    if context != "answer" and config.rollout.group_size < 2:  # it is shown others of the group
        changes |= {"rollout.group_size": _MORE}
    return changes | {"teacher": {"type": "initial", "context": context}}


def _prompts(config: Config, change: PromptSet) -> dict[str, Any]:
    words = change.model_dump(include={"user_prompt", "system_prompt"}, exclude_none=True)
    sides = ["student", *(["teacher"] if config.teacher_model.own_prompt else [])]
    changes = {f"{side}.{key}": text for side in sides for key, text in words.items()}
    if change.prompts is not None:
        changes |= {"data.prompts": change.prompts}
    return changes


def _learn_more(found: "Check", why: str, arguments: Words) -> str:
    check, changes = found.config.check, dict[str, Any]()
    if why == "unverified":
        if not found.has_answers:
            return _command("preview", arguments, {})
        return _command("check", arguments, {"data.verifier": "numeric"})
    rollout = found.config.rollout
    if rollout.top_p < 1 or rollout.top_k:
        return _command("check", arguments, {"rollout.top_p": 1, "rollout.top_k": 0})
    # Where every held-out question was asked, more samples of each say more.
    asked = next(iter(found.questions.values()))
    if asked < check.questions:
        changes["check.samples"] = _MORE * check.samples
    else:
        changes["check.questions"] = _MORE * check.questions
    changes["check.budget"] = _MORE * max(check.budget, _LEAST_BUDGET)
    return _command("check", arguments, changes)


def _look_at_prompts(found: "Check", why: str, arguments: Words) -> str:
    if why == "truncated":
        limit = 2 * found.config.rollout.max_new_tokens
        limit = limit if found.room is None else min(limit, found.room)
        if limit > found.config.rollout.max_new_tokens:
            return _command("check", arguments, {"rollout.max_new_tokens": limit})
    if why == "context_too_short" and found.room is not None and found.room > 0:
        return _command("check", arguments, {"rollout.max_new_tokens": found.room})
    if why in ("solved", "nobody_right") and (words := _evaluate(found.config)):
        return words
    return _command("preview", arguments, {})


def _evaluate(config: Config) -> str | None:
    """Answers of the student, question by question; None where `eval` has no such verifier."""
    data = config.data
    if data.verifier is None or config.student.server is not None:
        return None
    verifier: str = data.verifier.type
    if isinstance(data.verifier, PatternVerifier):
        verifier += f":{data.verifier.pattern}"
    elif isinstance(data.verifier, FunctionVerifier):
        verifier += f":{data.verifier.path}"
    words = [
        *("tutelage", "eval", config.student.path),
        *("--prompts", data.eval_prompts or data.prompts),
        *("--verifier", verifier),
        *("--max-new-tokens", str(config.rollout.max_new_tokens)),
        *("--temperature", f"{config.rollout.temperature:g}"),
        *("--top-p", f"{config.rollout.top_p:g}"),
        *("--output", "answers.jsonl"),
    ]
    return shlex.join(words)


def _look_elsewhere(found: "Check", arguments: Words) -> str:
    """Whoever was not tried yet: the student itself, with something to read beside the question."""
    config = found.config
    tried = set(config.align.contexts)
    contexts = [
        name
        for name in ("answer", "demonstration")
        if name not in tried and (name != "answer" or found.has_answers)
    ]
    if contexts and config.data.verifier is not None:
        return _command("check", arguments, {"align.contexts": [*config.align.contexts, *contexts]})
    return _command("check", arguments, {"teacher.path": "ANOTHER"})


def _free(folder: str) -> str:
    """The folder, or its name with the first number for which there is none yet."""
    path, number = folder, 1
    while Path(path).expanduser().exists():
        number += 1
        path = f"{folder}-{number}"
    return path


def _command(verb: str, arguments: Words, changes: Mapping[str, Any]) -> str:
    """The verb with the same arguments, but for what changes; some need no `check` section."""
    kept: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        pair = [word]
        if not word.startswith("--") or "=" not in word:
            pair += rest[:1]
            rest = rest[1:]
        key = word.removeprefix("--").partition("=")[0]
        replaced = any(key == new or key.startswith(f"{new}.") for new in changes)
        idle = verb in ("train", "preview") and key.startswith("check.")
        if not replaced and not idle:
            kept += pair
    given = [w for key, value in changes.items() for w in (f"--{key}", _plain(value))]
    return shlex.join(["tutelage", *verb.split(), *kept, *given])


def _plain(value: Any) -> str:
    """YAML that fits on a command line; text is quoted where YAML would read something else."""
    if isinstance(value, str):
        try:
            if yaml.safe_load(value) == value:
                return value
        except yaml.YAMLError:
            pass
    return json.dumps(value, ensure_ascii=False)
