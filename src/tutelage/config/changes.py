"""What may differ between a run and its resumption."""

from typing import Any

from tutelage.config.run import Config

CHANGEABLE_ON_RESUME = {
    "run.steps",
    "run.max_hours",
    "run.dir",
    "run.trackers",
    "run.tracker_wait_s",
}


def changes_on_resume(saved: Config, config: Config) -> list[str]:
    """What differs and must not, a phrase a setting.

    Those of `align`, `check` and `cold_start` belong to other verbs, unless the run is probed.
    """
    before, now = (_leaves(c.model_dump(mode="json")) for c in (saved, config))
    is_probed = saved.align.probe is not None or config.align.probe is not None
    return [
        f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
        and key not in CHANGEABLE_ON_RESUME
        and (is_probed or not key.startswith("align."))
        and not key.startswith(("check.", "cold_start."))
    ]


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves
