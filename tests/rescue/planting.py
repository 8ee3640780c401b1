"""Duplicates planted among real prompts, by the rules of planted.json alone."""

import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

RULES: dict[str, Any] = json.loads(Path(__file__).with_name("planted.json").read_text("utf-8"))


class Planted(NamedTuple):
    """A row of the column that is cleaned."""

    kind: str
    """own, exact, retemplated, unseen, or reworded-light and so on."""
    text: str
    """As the row holds it."""
    known: int | None
    """Which known question it is; None for a row that is none of them."""


SPELLINGS: dict[str, Callable[[str], str]] = {
    "same": lambda question: question,
    "upper_first": lambda question: question[:1].swapcase() + question[1:],
    "outer_space": lambda question: f"  {question} \n",
    "all_lower": str.lower,
}


def fill(template: str, question: str) -> str:
    return template.replace("{question}", question)


def reword(question: str, level: str) -> str:
    for pattern, words in RULES["rewordings"][level]:
        question = re.sub(pattern, words, question)
    if level == "heavy" and RULES["heavy_also_moves_the_last_sentence_to_the_front"]:
        parts = re.split(r"(?<=[.?!]) +", question.strip())
        question = " ".join([parts[-1], *parts[:-1]])
    return question


def plant(own: Sequence[str], known: Sequence[str], seed: int = 0) -> list[Planted]:
    """The own questions in two templates, with copies of known ones strewn among them."""
    rng = random.Random(seed)
    chosen = iter(rng.sample(range(len(known)), k=min(len(known), 2_000)))
    column = [RULES["column"]["boxed"], RULES["column"]["tutor"]]
    rows = [Planted("own", fill(column[i % 2], q), None) for i, q in enumerate(own)]
    copies: list[Planted] = []

    def copy(kind: str, template: str, place: int, write: Callable[[str], str]) -> None:
        copies.append(Planted(kind, fill(template, write(known[place])), place))

    forms = RULES["spellings"]["forms"]
    for i in range(RULES["exact_rows"]):
        copy("exact", column[i % 2], next(chosen), SPELLINGS[forms[i % len(forms)]])
    for kind, per_row in (("templates", "templates_per_row"), ("unseen", "unseen_per_row")):
        for template in RULES[kind].values():
            for _ in range(RULES[per_row]):
                name = "retemplated" if kind == "templates" else "unseen"
                copy(name, template, next(chosen), str)
    for i in range(RULES["reworded_rows"]):
        level = list(RULES["rewordings"])[i % len(RULES["rewordings"])]
        copy(f"reworded-{level}", column[i % 2], next(chosen), lambda q, at=level: reword(q, at))
    for item in copies:
        rows.insert(rng.randrange(len(rows) + 1), item)
    return rows
