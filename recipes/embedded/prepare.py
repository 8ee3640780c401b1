"""Held-out problems of the embedded models' task, as a prompts file.

python recipes/embedded/prepare.py problems.jsonl
"""

import json
import sys
from pathlib import Path

from tutelage.lab.embedded import EMBEDDED_SPEC


def main(path: Path, count: int = 256, seed: int = 5) -> None:
    """Write one problem a line: id, messages, answer."""
    rows = [
        {
            "id": prompt.id,
            "messages": [{"role": "user", "content": prompt.question}],
            "answer": prompt.answer,
        }
        for prompt in EMBEDDED_SPEC.task.eval_prompts(count, seed=seed)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
