"""Templates, copies and leaks in the real question sets, with planted copies among them."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import pytest
from planting import RULES, plant

from helpers import write_jsonl
from tutelage.config.rescue import PromptsRescue
from tutelage.data.prompts import load_prompts
from tutelage.rescue.sieve import Hit, Sieve

# Half a minute of one core, which a busy machine stretches.
pytestmark = pytest.mark.timeout(1500)

DAPO_PREFIX = re.compile(r"Solve the following math problem step by step\..* problem\.\n\n")
DAPO_SUFFIX = '\n\nRemember to put your answer on its own line after "Answer:".'
BOXED = " Please reason step by step, and put your final answer within \\boxed{}."
SETS = ("MATH-500", "AMC23", "AIME24", "AIME25")


@pytest.fixture(scope="module")
def planted(data_dir: Path, tmp_path_factory: pytest.TempPathFactory):
    """DeepMath in two templates with copies of DAPO's questions planted, against DAPO."""
    dapo = load_prompts(str(data_dir / "dapo-math-17k.parquet"))
    deep = load_prompts(str(data_dir / "DeepMath_deduped.parquet"))
    known = [p.question[178:-62].strip() for p in dapo]
    own = [p.question.removesuffix(BOXED).strip() for p in deep]
    rows = plant(own, known)
    file = write_jsonl(
        tmp_path_factory.mktemp("planted") / "rows.jsonl",
        ({"id": f"{i}", "prompt": row.text} for i, row in enumerate(rows)),
    )
    against = str(data_dir / "dapo-math-17k.parquet")
    sieve = Sieve(PromptsRescue(prompts=str(file), against=(against,)))
    kept = [int(item.row.prompt.id) for item in sieve.pass_through(str(file))]
    return rows, kept, sieve, {p.id: q for p, q in zip(dapo, known, strict=True)}


@pytest.fixture(scope="module")
def leaks(data_dir: Path) -> tuple[Mapping[str, Any], list[Hit]]:
    sieve = Sieve(
        PromptsRescue(
            prompts=str(data_dir / "dapo-math-17k.parquet"),
            evaluation=tuple(str(data_dir / f"{name}.json") for name in SETS),
        )
    )
    for _ in sieve.pass_through(sieve.settings.prompts):
        pass
    return sieve.summary(), sieve.hits


def test_the_learned_affixes_are_the_real_ones(planted, leaks):
    templates = leaks[0]["templates"]
    (dapo,) = (found for source, found in templates.items() if "dapo" in source)
    assert dapo["suffixes"] == [DAPO_SUFFIX]
    (prefix,) = dapo["prefixes"]
    assert DAPO_PREFIX.fullmatch(prefix)
    assert len(prefix) == 178
    assert dapo["templates"][0]["rows"] == 17917
    for source, found in templates.items():
        if "dapo" not in source:
            assert (found["prefixes"], found["suffixes"]) == ([], [])
    column = planted[2].affixes[planted[2].settings.prompts]
    tutor_prefix, tutor_suffix = RULES["column"]["tutor"].split("{question}")
    assert column.prefixes == (tutor_prefix,)
    assert set(column.suffixes) == {tutor_suffix, BOXED}


def test_planted_copies_are_found_and_nothing_else(planted):
    rows, kept, sieve, known = planted
    dropped = set(range(len(rows))) - set(kept)
    by_row = {int(hit.id): hit for hit in sieve.hits if hit.part == "training"}
    all_of, found, right = Counter(r.kind for r in rows), Counter[str](), 0
    texts = list(known.values())
    for i, hit in by_row.items():
        found[rows[i].kind] += 1
        place = rows[i].known
        # DAPO repeats itself: the question that is named may be another copy of the planted one.
        right += place is not None and alike(known[hit.matched], texts[place])
    # A planted row may also repeat a planted row before it.
    twice = Counter(rows[i].kind for i in dropped - by_row.keys())
    planted_rows = sum(found.values()) - found["own"]
    precision = planted_rows / sum(found.values())
    share = {k: found[k] / (n - twice[k]) for k, n in all_of.items() if k != "own"}
    print(json.dumps({"precision": precision, "recall": share, "right": right}))
    assert sum(n for kind, n in all_of.items() if kind in ("exact", "retemplated", "unseen")) >= 300
    for kind in ("exact", "retemplated", "unseen"):
        assert share[kind] >= 0.95
    assert precision >= 0.95
    assert right >= 0.95 * planted_rows


def alike(question: str, other: str) -> bool:
    """Whether most words of two questions are the same."""
    return SequenceMatcher(None, question.split(), other.split(), autojunk=False).ratio() > 0.5


def test_no_question_of_deepmath_is_one_of_dapo(planted):
    rows, _, sieve, _ = planted
    own = [h for h in sieve.hits if h.part == "training" and rows[int(h.id)].kind == "own"]
    assert [hit for hit in own if hit.kind in ("exact", "respelled")] == []


def test_dapo_holds_the_known_leaks_and_repeats(leaks):
    summary, hits = leaks
    assert summary["rows"] == 17917
    assert summary["unique_questions"] == 17253
    exact = {
        Path(source).stem: leak["leaked"].get("exact", 0)
        for source, leak in summary["leaks"].items()
    }
    assert exact == {"MATH-500": 2, "AMC23": 8, "AIME24": 0, "AIME25": 0}
    for name in ("AIME24", "AIME25"):
        assert [hit for hit in hits if Path(hit.source).stem == name] == []
    assert all(hit.dropped for hit in hits)


def test_order_is_kept(planted):
    _, kept, _, _ = planted
    assert kept == sorted(kept)
