"""What the scripts here share: rows that are done, and tables of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read_rows(path: Path) -> list[dict[str, Any]]:
    """What is done so far, a JSON object a line; nothing before the first."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table."""
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        cells = [f"{x:.3f}" if isinstance(x, float) else str(x) for x in row]
        print("| " + " | ".join(cells) + " |")
    print(flush=True)
