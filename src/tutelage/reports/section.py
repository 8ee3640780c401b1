"""A part of the page with a heading of its own."""

from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """What stands under one heading, with the data and the script that draw it."""

    id: str
    """Its anchor, also in the table of contents."""
    title: str
    """The heading."""
    html: Markup
    """What stands under it; every text in it is escaped already."""
    style: str = ""
    """CSS for it alone."""
    data: dict[str, Any] = field(default_factory=dict)
    """For `JSON.parse(document.getElementById("data-" + id).textContent)`; no number that is not
    finite."""
    script: str = ""
    """JavaScript that runs at the end of the page, with a hash in its policy."""
