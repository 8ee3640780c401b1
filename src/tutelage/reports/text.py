"""Text of models and files, made safe to look at."""

import re

_ESCAPES = re.compile(
    "\x1b\\][^\x07\x1b]*(?:\x07|\x1b\\\\)?"  # a title or a link, up to its end
    "|(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, cursor movements and the like
)
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls but tab and line feed
    "\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # directions, widths
    "\ud800-\udfff\U000e0000-\U000e007f]"  # halves of a character, tags
)


def visible(text: str, limit: int | None = None) -> str:
    """The text without terminal escapes, with every other unseen character spelled out.

    Changes of direction, zero-width characters, controls and lone surrogates become their number
    in ⟨⟩; tab and line feed stay. What exceeds `limit` characters is left out, and counted.
    """
    left_out = len(text) - limit if limit is not None and len(text) > limit else 0
    shown = text[:limit] if left_out else text
    shown = _ESCAPES.sub("", shown.replace("\r\n", "\n"))
    shown = _UNSEEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", shown)
    return f"{shown} … ({left_out:,} more characters)" if left_out else shown
