"""A copy is found in whatever dress, and another question is not one."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tutelage.config.rescue import MinHash, Near, Semantic
from tutelage.errors import MachineError, UsageError
from tutelage.rescue import encoders
from tutelage.rescue.copies import Judge, Known, Match, Question
from tutelage.rescue.encoders import Neighbours, load_encoder
from tutelage.rescue.passages import PassageIndex, hashes_of, shingles
from tutelage.rescue.wording import words_of

POOL = "Let $n$ be a positive integer such that $n^2 + 3n + 1$ is divisible by $55$. Find $n$."
OTHERS = (
    "A train leaves at 7 and arrives at 12. How fast does it go, if it covers 300 miles?",
    "Evaluate $\\lim_{n\\to\\infty} \\frac{n!}{n^n}$.",
    "What is 17 + 25?",
    "求最大的实数 $c$，使得对任意正整数 $n > 1$ 都有 $c n \\le 2^n$ 成立。",
    "How many primes are there between 100 and 150?",
)


def find(question: str, known: Sequence[str] = (POOL, *OTHERS), near: Near | None = None):
    found = Known(Judge(near))
    for text in known:
        found.add(Question(text))
    return found.find(Question(question), 0)


def kind(match: Match | None) -> str | None:
    return None if match is None else match.kind


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        (POOL, "exact"),
        (f"  {POOL.upper()}\n", "exact"),
        (POOL.replace("$", "").replace(" + ", "+"), "respelled"),
        (POOL.replace("$n$", "\\(n\\)").replace("55", "\\mathbf{55}"), "respelled"),
        (f"Q: {POOL}\nA:", "contained"),
        (f">>> {POOL} <<<\nYou have 20 minutes. 5 points for a proof.", "contained"),
        (f"**Task 3.** {POOL} **Write the result in a box, and nothing else.**", "contained"),
        ("Q: What is 17 + 25?\nA:", "contained"),
        ("请回答：" + OTHERS[3] + "谢谢！", "contained"),
        ("Evaluate \\[\\lim_{n\\to\\infty}\\dfrac{n!}{n^n}\\]", "respelled"),
    ],
)
def test_a_copy_is_found_in_every_dress(question: str, expected: str):
    assert kind(find(question)) == expected


@pytest.mark.parametrize(
    "question",
    [
        POOL.replace("55", "65"),
        POOL.replace("+ 1", "- 1"),
        "What is 17 + 25 * 2?",
        "What is 17 - 25?",
        "What is 18 + 25?",
        "Evaluate $\\lim_{n\\to\\infty} \\frac{n^n}{n!}$.",
        "How many primes are there between 100 and 250?",
        "A train leaves at 7 and arrives at 11. How fast does it go, if it covers 300 miles?",
        "Let $n$ be a positive integer.",
        "",
        "?!",
    ],
)
def test_another_question_is_no_copy(question: str):
    assert find(question, near=MinHash()) is None


def test_a_question_of_an_evaluation_set_in_a_template_is_found_in_plain_words():
    asked = f"Read carefully. There will be no second chance to do so.\n{POOL}\nThank you."
    assert kind(find(POOL, [asked])) == "contained"


def test_generated_problems_that_differ_in_numbers_are_no_copies():
    asked = [f"What is {a} + {b} - {c}?" for a in range(9) for b in range(9) for c in range(2)]
    judge = Judge(MinHash())
    known = Known(judge)
    for text in asked:
        assert known.find(Question(text), 0) is None
        known.add(Question(text))


def test_near_copies_share_most_pairs_of_words_and_all_numbers():
    near = MinHash(threshold=0.4)
    reworded = POOL.replace("Let $n$ be a positive integer such that", "Suppose for an integer n")
    changed = OTHERS[0].replace("How fast does it go, if", "What is its speed when")
    for question in (reworded, changed):
        assert kind(find(question, near=near)) == "near"
        assert find(question) is None
    assert find(changed.replace("300", "400"), near=near) is None
    assert find(reworded.replace("integer n", "integer n > 0"), near=near) is None  # a number more


def test_words_keep_signs_powers_and_factorials_and_drop_dress():
    assert words_of("1{,}000 + 2,500 = 3,500.") == ["1000", "+", "2500", "=", "3500"]
    assert words_of("\\left( x\\right)^{2}\\leqslant -y!") == [
        *("(", "x", ")", "^", "2", "le", "-", "y", "!"),
    ]
    assert words_of("A well-known fact!") == ["a", "well", "known", "fact"]
    assert words_of("(1,2) 3.5 ____") == ["(", "1", "2", ")", "3.5"]


def test_a_passage_is_found_wherever_it_stands():
    rng = np.random.default_rng(0)
    index = PassageIndex()
    texts = [[f"w{i}" for i in rng.integers(0, 5000, 40)] for _ in range(2000)]
    for words in texts:
        index.add(hashes_of(words))
    for place in range(0, 2000, 40):
        around = [f"x{i}" for i in rng.integers(0, 5000, 60)]
        words = [*around[:30], *texts[place], *around[30:]]
        assert index.find(hashes_of(words))[0][0] == place
        inside = texts[place][10:25]  # 12 shingles, of which 4 neighbours hold a kept one
        assert index.find(hashes_of(inside))[0][0] == place
    assert index.find(hashes_of([f"y{i}" for i in range(50)])) == []
    assert len(shingles(["a"] * 3)) == 1


# --- embeddings ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def static_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model2vec encoder with a random vector for each word."""
    from model2vec import StaticModel
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = sorted({w for text in (POOL, *OTHERS) for w in text.split()})
    core = Tokenizer(
        models.WordLevel({"[UNK]": 0, **{w: i + 1 for i, w in enumerate(words)}}, "[UNK]")
    )
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    vectors = np.random.default_rng(0).normal(size=(len(words) + 1, 32)).astype(np.float32)
    vectors[0] = 0
    folder = tmp_path_factory.mktemp("static")
    StaticModel(vectors, core).save_pretrained(str(folder))
    return folder


def test_embeddings_find_what_shares_no_passage(static_encoder: Path):
    shuffled = " ".join(sorted(POOL.split()))
    judge = Judge(Semantic(encoder=str(static_encoder)))
    known = Known(judge)
    vectors = judge.encode([Question(t) for t in (*OTHERS, POOL)])
    assert vectors is not None
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for text, vector in zip((*OTHERS, POOL), vectors, strict=True):
        known.add(Question(text), vector)
    asked = [Question(shuffled), Question("Something else entirely, of unknown words")]
    known.ask(judge.encode(asked))
    match = known.find(asked[0], 0)
    assert match is not None
    assert (match.kind, match.places) == ("semantic", (len(OTHERS),))
    assert match.similarity > 0.99
    assert known.find(asked[1], 1) is None


def test_a_sentence_transformers_encoder_gives_unit_vectors(tmp_path: Path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    from helpers import save_tiny_llama

    model = SentenceTransformer(
        modules=[
            part := Transformer(str(save_tiny_llama(tmp_path / "llama"))),
            Pooling(part.get_embedding_dimension()),
        ],
        device="cpu",
    )
    model.tokenizer.pad_token = model.tokenizer.eos_token
    model.save(str(tmp_path / "encoder"))
    vectors = load_encoder(str(tmp_path / "encoder"))(["What is 1 + 2?", "What is 2 + 1?"])
    assert vectors.shape == (2, 16)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_neighbours_are_those_of_a_plain_search(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(encoders, "_BLOCK", 50)
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(230, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = Neighbours()
    for start in range(0, 230, 23):
        part = vectors[start : start + 23]
        found.ask(part)
        for i, vector in enumerate(part):
            if start + i:
                cosines = vectors[: start + i] @ vector
                assert found.nearest(i) == (pytest.approx(cosines.max()), cosines.argmax())
            found.add(vector)


def test_an_encoder_that_is_not_here_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path):
    with pytest.raises(MachineError, match="hf download sentence-transformers/all-mpnet-base-v2"):
        Judge(Semantic())
    with pytest.raises(MachineError, match="--near minhash"):
        Judge(Semantic(encoder="/no/such/folder"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="cannot be loaded"):
        Judge(Semantic(encoder=str(tmp_path)))
    monkeypatch.setattr(encoders, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r"tutelage\[semantic\]"):
        Judge(Semantic(encoder=str(tmp_path)))
