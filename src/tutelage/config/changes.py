"""What may differ between a run and its resumption."""

from collections.abc import Sequence
from typing import Any

from tutelage.config.run import Config
from tutelage.errors import UsageError, did_you_mean

CHANGEABLE_ON_RESUME = {
    "distributed",
    "run.steps",
    "run.max_hours",
    "run.dir",
    "run.trackers",
    "run.tracker_wait_s",
}
# A checkpoint is of one student.
NEVER_CHANGEABLE = "student."


def changes_on_resume(saved: Config, config: Config, allowed: Sequence[str] = ()) -> list[str]:
    """What differs and was allowed to by name, a phrase a setting.

    Those of `align`, `check`, `cold_start` and `engine` belong to other verbs, unless the run is
    probed.

    Args:
        saved: the settings that the run has.
        config: those it is to go on with.
        allowed: settings, or sections, that may differ.

    Raises:
        UsageError: another one differs, or `allowed` names none that there is.
    """
    differ = _differences(saved, config)
    known = leaves_of(config.model_dump(mode="json")).keys() | leaves_of(saved.model_dump()).keys()
    for name in allowed:
        if not any(_is_in(key, name) for key in known):
            raise UsageError(f"there is no setting {name!r} to change. {did_you_mean(name, known)}")
    refused = {
        key: told
        for key, told in differ.items()
        if not any(_is_in(key, name) for name in allowed) or key.startswith(NEVER_CHANGEABLE)
    }
    if refused:
        others = [key for key in refused if not key.startswith(NEVER_CHANGEABLE)]
        asked = " ".join(f"--allow-change {key}" for key in others)
        raise UsageError(
            "--resume continues a run with the settings it began with, but "
            + "; ".join(refused.values())
            + f". Only {', '.join(sorted(CHANGEABLE_ON_RESUME))} may change"
            + (f", and others that are named: {asked}" if others else "")
            + (
                ""
                if len(others) == len(refused)
                else "; the student's never, since the checkpoint is of that student"
            )
        )
    return list(differ.values())


def _is_in(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}.")


def _differences(saved: Config, config: Config) -> dict[str, str]:
    before, now = (leaves_of(c.model_dump(mode="json")) for c in (saved, config))
    is_probed = saved.align.probe is not None or config.align.probe is not None
    return {
        key: f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
        and not any(_is_in(key, name) for name in CHANGEABLE_ON_RESUME)
        and (is_probed or not key.startswith("align."))
        and not key.startswith(("check.", "cold_start.", "engine."))
    }


def leaves_of(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a tree by their names, such as `optimizer.lr`."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            leaves |= leaves_of(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves
