"""What a run keeps of held-out rollouts is what both models say of them."""

import itertools

import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers import models as tokenizer_models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from helpers import read_jsonl, tiny_tokenizer
from tutelage.models.tokens import describe_tokens, token_bytes, token_text
from tutelage.token_records import ENTRIES, FEWEST, listed_tokens
from tutelage.training import train

K = 7


@pytest.fixture(scope="module")
def recorded(gpt2_pair, tmp_path_factory):
    from helpers import tiny_run

    folder = tmp_path_factory.mktemp("recorded")
    config = tiny_run(folder, *gpt2_pair, lr=3e-3)(
        run={"steps": 1, "metrics_k": K, "record_rollouts": 4},
        objective={"weight": {"type": "position"}},
    )
    run = train(config).run
    return read_jsonl(run / "rollouts" / "step-0.jsonl")


def test_lists_are_the_most_likely_tokens_of_both_models_at_every_state(recorded, gpt2_pair):
    assert len(recorded) == 4
    vocabulary = len(tiny_tokenizer())
    for side, folder in zip(("student", "teacher"), gpt2_pair, strict=True):
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        for rollout in recorded:
            start = len(rollout["prompt_ids"])
            ids = torch.tensor([rollout["prompt_ids"] + rollout["completion_ids"]])
            with torch.no_grad():
                logits = model(ids).logits[0, start - 1 : -1, :vocabulary].double()
            logprobs, order = logits.log_softmax(-1).sort(-1, descending=True)
            listed = rollout["likely"][side]
            assert listed["ids"] == order[:, :K].tolist()
            found = torch.tensor(listed["logprobs"], dtype=torch.float64)
            assert torch.allclose(found, logprobs[:, :K], atol=6e-4)


def test_a_record_names_every_token_it_lists(recorded):
    for rollout in recorded:
        listed = {i for side in rollout["likely"].values() for ids in side["ids"] for i in ids}
        assert {int(i) for i in rollout["vocabulary"]} == listed | set(rollout["completion_ids"])
        names = [rollout["vocabulary"][str(i)] for i in rollout["completion_ids"]]
        assert rollout["tokens"] == names
        assert rollout["special"] == ([0] if 0 in listed | set(rollout["completion_ids"]) else [])


def test_weights_are_those_of_the_objectives_rule(recorded):
    """Linear in the position, and the beginning counts more."""
    assert any(len(rollout["tokens"]) >= 3 for rollout in recorded)
    for rollout in recorded:
        weights = rollout["scores"]["weight"]
        steps = {round(b - a, 4) for a, b in itertools.pairwise(weights)}
        assert len(weights) == len(rollout["tokens"])
        assert len(weights) < 3 or max(steps) - min(steps) < 5e-4
        assert len(weights) == 1 or weights[0] - weights[-1] > 0.1


def test_lists_of_an_evaluation_stay_bounded_and_never_shorter_than_the_page_needs():
    for tokens in (0, 1, 500, 16_384, 16_385, 50_000, 10**7):
        k = listed_tokens(16, tokens)
        assert FEWEST <= k <= 16
        assert k == FEWEST or k * tokens <= ENTRIES
    assert listed_tokens(16, 8 * 2_000) == 16
    assert listed_tokens(3, 8 * 2_000) == 3


def test_parts_of_a_character_are_known_by_their_bytes():
    tokenizer = tiny_tokenizer()
    ids = tokenizer("€5 ü")["input_ids"]
    parts = [token_bytes(tokenizer, i) for i in ids]
    whole = b"".join(
        token_text(tokenizer, i).encode() if part is None else part
        for i, part in zip(ids, parts, strict=True)
    )
    assert whole.decode() == "€5 ü"
    assert parts.count(None) < len(parts)
    told = describe_tokens(tokenizer, [*ids, 0, 5_000])
    assert told["special"] == [0]
    assert told["vocabulary"]["0"] == "<end>"
    assert "e2" in told["bytes"].values()


def test_sentence_pieces_keep_their_spaces_and_bytes():
    vocabulary = {"<unk>": 0, "▁the": 1, "▁answer": 2, "s": 3, "<0xE2>": 4}
    core = Tokenizer(tokenizer_models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    assert tokenizer.decode([2]) == "answer"
    assert "".join(token_text(tokenizer, i) for i in (1, 2, 3)) == " the answers"
    assert token_bytes(tokenizer, 4) == b"\xe2"
    assert token_bytes(tokenizer, 2) is None
