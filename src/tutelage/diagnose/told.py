"""An explanation as text."""

import json
import textwrap
from collections.abc import Mapping
from typing import Any

from tutelage.diagnose.explaining import Explanation
from tutelage.signals.causes import Cause

WIDTH = 100


def as_text(found: Explanation, top: int) -> str:
    """The story first, then the causes with their evidence."""
    blocks = [textwrap.fill(found.story, WIDTH)]
    blocks += [cause_text(place, cause) for place, cause in enumerate(found.causes[:top], 1)]
    if len(found.causes) > top:
        rest = ", ".join(f"{c.name} ({c.confidence})" for c in found.causes[top:])
        blocks.append(textwrap.fill(f"Further: {rest}.", WIDTH))
    if found.notes:
        blocks.append("\n".join(textwrap.fill(f"note: {note}.", WIDTH) for note in found.notes))
    return "\n\n".join(blocks)


def cause_text(place: int, cause: Cause) -> str:
    """One cause: what, why, and what to change."""
    lines = [f"{place}. {cause.name} ({cause.confidence} confidence): {cause.text}."]
    lines += [f"- {evidence}" for evidence in cause.evidence]
    lines.append(f"change: {cause.advice}")
    lines += [f"  {words}" for words in flags(cause.change)]
    lines.append(f"rule: {cause.source}")
    first, *rest = lines
    return "\n".join(
        [
            textwrap.fill(first, WIDTH, subsequent_indent="   "),
            *(
                textwrap.fill(line, WIDTH, initial_indent="   ", subsequent_indent="     ")
                for line in rest
            ),
        ]
    )


def flags(change: Mapping[str, Any]) -> list[str]:
    """A change as the words that `train` takes; a section replaces what was there."""
    return [f"{key}: {json.dumps(value)}" for key, value in change.items()]
