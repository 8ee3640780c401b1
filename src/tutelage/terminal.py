"""Text that a terminal shows and does not obey.

Model output, paths and what servers say may hold escape sequences that move the cursor, set the
clipboard or the title, and marks that turn the order of a line around.
"""

import re
import unicodedata

# Whole sequences, so that their arguments do not stay behind as litter. Each stops where another
# begins, so a text full of unfinished ones takes no longer than its length.
_SEQUENCES = re.compile(
    # OSC, DCS, SOS, PM, APC
    r"(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x1b\x07\x90\x98-\x9f]*(?:\x07|\x1b\\|\x9c)"
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI
    r"|\x1b[ -/]*[0-~]"  # two and three characters, and the beginning of an unfinished one
)
_KEPT = {"\n", "\t", "\u200c", "\u200d"}  # joiners, without which some scripts read wrongly
_DROPPED = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def printable(text: str) -> str:
    """The text without escape sequences, control characters and marks of direction."""
    if text.isprintable():
        return text
    text = _SEQUENCES.sub("", text)
    return "".join(c for c in text if c in _KEPT or unicodedata.category(c) not in _DROPPED)


def one_line(text: str, limit: int = 400) -> str:
    """The text on one line, at most `limit` characters."""
    text = " ".join(printable(text[: 10 * limit]).split())
    return text if len(text) <= limit else text[: limit - 4] + " ..."
