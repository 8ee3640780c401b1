"""From YAML and flags to validated settings, and from faults to messages."""

import re
from collections.abc import Hashable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from tutelage.config.base import AnySection, Section
from tutelage.config.objective import ESTIMATORS_THAT_DO_NOT_DISTIL
from tutelage.config.run import Config
from tutelage.errors import UsageError, did_you_mean
from tutelage.secrets import redacted

_PRESETS = Path(__file__).parents[1] / "presets"


_MOST_CHARACTERS = 2**20
_MOST_VALUES = 20_000
_FAULTS = 20  # told at once
_COMMENT = re.compile(r"(?:^|\s)#")
_A_CONFIG = (
    "-c takes a YAML file of settings; `tutelage init STUDENT TEACHER --data PROMPTS` writes one"
)


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML in which a key that stands twice is an error.

    Dates and numbers to the base of 60 (`12:30`) are text: no setting is one. Aliases (`*name`)
    count as often as they stand, so a few lines cannot grow to fill the memory.
    """

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _values(node, {}) > _MOST_VALUES:
            raise UsageError(f"it comes to more than {_MOST_VALUES:,} values; no settings do")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        mapping = super().construct_mapping(node, deep)  # knows which keys cannot be any
        seen: set[Hashable] = set()
        for key in keys:
            if key in seen:
                line = node.start_mark.line + 1
                raise UsageError(f"key {key!r} stands twice in the block at line {line}; keep one")
            seen.add(key)
        return mapping


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node is, with what its aliases stand for.

    Raises:
        UsageError: it holds itself.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = 0  # until it is counted
        parts = node.value
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    elif not known[id(node)]:
        raise UsageError(f"the value at line {node.start_mark.line + 1} holds itself")
    return known[id(node)]


# Patterns of PyYAML without the forms to the base of 60.
_NUMBERS = {
    "tag:yaml.org,2002:float": r"""[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+][0-9]+)?
        |\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)""",
    "tag:yaml.org,2002:int": r"[-+]?(?:0b[0-1_]+|0[0-7_]+|0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)",
}
_StrictLoader.yaml_implicit_resolvers = {
    first: [
        (tag, re.compile(f"^(?:{_NUMBERS[tag]})$", re.VERBOSE) if tag in _NUMBERS else pattern)
        for tag, pattern in resolvers
        if tag != "tag:yaml.org,2002:timestamp"
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _parse_yaml(text: str, origin: str) -> Any:
    if len(text) > _MOST_CHARACTERS:
        raise UsageError(
            f"{origin} has {len(text):,} characters, and settings have {_MOST_CHARACTERS:,} at "
            "most; is it another file?"
        )
    try:
        return yaml.load(text, Loader=_StrictLoader)  # nosec B506 # it is a SafeLoader
    except UsageError as error:
        raise UsageError(f"{origin}: {error}") from None
    except RecursionError:
        raise UsageError(f"{origin} is nested too deeply to be settings") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{origin} is not YAML: {error}") from None


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """A validated config from a YAML file and `--section.key value` words; later wins.

    The key `preset`, in the file or as a flag, names settings to start from.

    Raises:
        UsageError: naming the file, the field and what is allowed.
    """
    if path is None and not overrides:
        raise UsageError(
            "no settings were given: -c run.yaml names a file of them, which "
            "`tutelage init STUDENT TEACHER --data PROMPTS` writes"
        )
    tree: dict[str, Any] = {}
    if path is not None:
        if Path(path).suffix in (".jsonl", ".csv", ".parquet"):
            raise UsageError(f"{path} looks like a file of prompts; {_A_CONFIG}")
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise UsageError(f"cannot read config {path}: {reason}; {_A_CONFIG}") from None
        loaded = _parse_yaml(text, str(path))
        if loaded is not None and not isinstance(loaded, dict):
            raise UsageError(
                f"{path} holds {type(loaded).__name__}, not a mapping of sections; {_A_CONFIG}"
            )
        tree = loaded or {}
    for key, value in _pairs(overrides):
        _set(tree, key, value)
    preset = tree.pop("preset", None)
    if preset is not None:
        tree = _merge(yaml.safe_load(preset_text(preset)), tree)
    origin = [str(path)] if path is not None else []
    return parse_config(tree, " and ".join([*origin, *(["the flags"] if overrides else [])]))


def presets(name: str | None = None) -> str:
    """The verb `presets`: a preset's YAML, or the names of all with what they are.

    Raises:
        UsageError: there is none of that name.
    """
    if name is not None:
        return preset_text(name)
    first_lines = {n: preset_text(n).splitlines()[0].removeprefix("# ") for n in preset_names()}
    return "".join(f"{known:20} {line}\n" for known, line in first_lines.items())


def preset_names() -> list[str]:
    """The presets that ship with the package."""
    return sorted(file.stem for file in _PRESETS.glob("*.yaml"))


def preset_text(name: object) -> str:
    """A preset's YAML.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in preset_names():
        raise UsageError(
            f"preset {name!r} does not exist. {did_you_mean(str(name), preset_names())}"
        )
    return (_PRESETS / f"{name}.yaml").read_text(encoding="utf-8")


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, section by section; another `type` replaces the whole section."""
    merged = dict(base)
    for key, value in over.items():
        below = base.get(key)
        same_type = (
            isinstance(value, dict)
            and isinstance(below, dict)
            and value.get("type", below.get("type")) == below.get("type")
        )
        merged[key] = _merge(below, value) if same_type and below is not None else value
    return merged


def parse_config(tree: Mapping[str, Any], origin: str = "the config") -> Config:
    """A validated config from a tree of plain values.

    Raises:
        UsageError: one line a fault.
    """
    return section(Config, tree, origin)


def section(
    kind: type[AnySection], tree: Mapping[str, Any], origin: str = "the flags"
) -> AnySection:
    """One validated section from a tree of plain values.

    Raises:
        UsageError: one line a fault.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        told = error.errors()
        faults = [_explain(fault, kind) for fault in told[:_FAULTS]]
        if len(told) > _FAULTS:
            faults.append(f"and {len(told) - _FAULTS} faults more")
        raise UsageError(f"{origin}: " + "\n".join(faults)) from None


def dump_config(config: Config) -> str:
    """The resolved settings as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def config_keys(section: type[Section] = Config, prefix: str = "") -> dict[str, str]:
    """Every dotted key with its description, for help pages and suggestions."""
    keys: dict[str, str] = {}
    for name, info in section.model_fields.items():
        parts = sections_of(info.annotation)
        if not parts:
            keys[prefix + name] = info.description or ""
        for part in parts:
            keys |= config_keys(part, f"{prefix}{name}.")
    return keys


def sections_of(annotation: Any) -> list[type[Section]]:
    """The sections that a field's type can hold, in their order."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for inner in get_args(annotation) for section in sections_of(inner)]


def _pairs(words: Sequence[str]) -> list[tuple[str, Any]]:
    """`--a.b v` and `--a.b=v` as (key, value) pairs."""
    pairs: list[tuple[str, Any]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) == 2:
            file = word.endswith((".yaml", ".yml"))
            raise UsageError(
                f"unexpected argument {word!r}; "
                + (f"write -c {word}" if file else "settings are written --section.key value")
            )
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not rest:
                raise UsageError(f"--{key} lacks a value; write --{key} VALUE")
            value = rest.pop(0)
        pairs.append((key, _flag_value(value, f"--{key}")))
    return pairs


def _flag_value(text: str, origin: str) -> Any:
    """A flag's value: YAML, or the text itself where that is none (`{question} Be brief.`).

    What YAML would take for a comment belongs to the text: `#(\\d)$` is a pattern.
    """
    try:
        value = _parse_yaml(text, origin)
    except UsageError as error:
        if isinstance(error.__context__, yaml.YAMLError):
            return text
        raise
    plain = value is None or (isinstance(value, str) and text.lstrip()[:1] not in "\"'")
    return text if plain and _COMMENT.search(text) else value


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for depth, parent in enumerate(parents, 1):
        child = tree.get(parent)
        if isinstance(child, str):  # the short form of a tagged section
            child = {"type": child}
        if not isinstance(child, dict | None):
            raise UsageError(
                f"--{key} sets a part of {'.'.join(parents[:depth])}, which is {child!r} and has "
                "no parts"
            )
        tree[parent] = child = dict(child or {})
        tree = child
    tree[last] = value


def _explain(fault: ErrorDetails, root: type[Section]) -> str:
    path, siblings, inside = _field_path(fault["loc"], root)
    where = ".".join(path)
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "extra_forbidden":
        return f"{where} does not exist. {_meant(path, siblings, root)}"
    if kind == "missing":
        return f"{where} is missing; it has no default"
    if kind == "union_tag_not_found":
        return f"{where}.type is missing; write a name alone, or a mapping with a type"
    if kind == "union_tag_invalid":
        tag = str(context.get("tag"))
        if where == "objective" and tag in ESTIMATORS_THAT_DO_NOT_DISTIL:
            return f"objective.type {tag!r} does not distil: {ESTIMATORS_THAT_DO_NOT_DISTIL[tag]}"
        expected = str(context.get("expected_tags", "")).replace("'", "").split(", ")
        models = {s.__name__ for s in inside} & set(expected)  # what has no type, but a path
        told = f"{where}.type {tag!r} does not exist. {did_you_mean(tag, {*expected} - models)}"
        return f"{told} A model is written {where}: {{path: {tag}}}" if models else told
    if kind == "model_type" and inside:
        given, first = redacted(repr(fault["input"])), _first_key(inside[0])
        return f"{where}: it has keys of its own, as in {{{first}: ...}}, got {given}"
    prefix = f"{where}: " if where else ""
    if kind == "value_error":
        return f"{prefix}{context['error']}"
    given = redacted(repr(fault["input"]))
    return f"{prefix}{fault['msg'][0].lower()}{fault['msg'][1:]}, got {given}"


def _meant(path: Sequence[str], siblings: set[str], root: type[Section]) -> str:
    """A suggestion for a key that does not exist: a similar one, or settings of that name."""
    name = path[-1]
    if len(path) == 1 and not get_close_matches(name, siblings):
        found = [key for key in config_keys(root) if key.endswith(f".{name}")]
        if found:
            return f"Did you mean {' or '.join(sorted(found, key=len)[:3])}?"
    return did_you_mean(name, siblings)


def _first_key(section: type[Section]) -> str:
    """The key that a section cannot do without, or its first one."""
    fields = section.model_fields
    return next((name for name, info in fields.items() if info.is_required()), next(iter(fields)))


def _field_path(
    location: tuple[int | str, ...], root: type[Section]
) -> tuple[list[str], set[str], list[type[Section]]]:
    """A fault's place as dotted keys, the keys that exist there, and the sections it may hold.

    pydantic's location also names the branches of unions that it took; they are
    no keys, and serve only to know which section the rest is in.
    """
    path: list[str] = []
    inside: list[type[Section]] = [root]
    known: set[str] = set()
    is_name = False
    for part in map(str, location):
        fields = {name: info for section in inside for name, info in section.model_fields.items()}
        known = set(fields)
        branch = [s for s in inside if part in (s.__name__, _tag(s))]
        if is_name:  # a key of the user's own, under which a section stands
            path.append(part)
            is_name = False
        elif part in fields:
            path.append(part)
            inside = sections_of(fields[part].annotation)
            is_name = get_origin(fields[part].annotation) is dict
        elif branch:
            inside = branch
        elif part.isdigit():  # the place in a list of sections
            path.append(part)
        elif not part.startswith("literal["):
            path.append(part)
            inside = []
    return path, known, inside


def _tag(section: type[Section]) -> object:
    field = section.model_fields.get("type")
    return field.default if field is not None else None
