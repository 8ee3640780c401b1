"""Single tokens as a reader sees them: text, parts of a character, special ones."""

from collections.abc import Iterable
from functools import cache
from typing import cast

import regex
from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"  # what stands where bytes are no whole character
_BYTE = regex.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "▁"  # how SentencePiece writes one


def token_text(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """A token alone as text, special tokens included.

    SentencePiece drops the space in front of a lone word; here it is kept, so that texts of
    tokens one after the other are the text of all.
    """
    text = cast(str, tokenizer.decode([token_id], skip_special_tokens=False))
    name = _name(tokenizer, token_id)
    return " " + text if name.startswith(_SPACE) and not text.startswith(" ") else text


def token_bytes(tokenizer: PreTrainedTokenizerBase, token_id: int) -> bytes | None:
    """The bytes of a token that is no whole text by itself; None where it is, or none are known."""
    if REPLACEMENT not in cast(str, tokenizer.decode([token_id])):
        return None
    name = _name(tokenizer, token_id)
    if single := _BYTE.fullmatch(name):
        return bytes.fromhex(single[1])
    alphabet = _byte_of_letter()
    return bytes(alphabet[c] for c in name) if name and set(name) <= alphabet.keys() else None


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of tokens that stand for no text: ends, turns, padding."""
    added = tokenizer.added_tokens_decoder
    return frozenset(tokenizer.all_special_ids) | {i for i, t in added.items() if t.special}


def describe_tokens(
    tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]
) -> dict[str, dict[str, str] | list[int]]:
    """What a page needs to show these ids: `vocabulary`, `bytes` in hexadecimal, `special`."""
    wanted = sorted(set(ids))
    partial = {i: part for i in wanted if (part := token_bytes(tokenizer, i)) is not None}
    return {
        "vocabulary": {str(i): token_text(tokenizer, i) for i in wanted},
        "bytes": {str(i): part.hex() for i, part in partial.items()},
        "special": sorted(special_ids(tokenizer) & set(wanted)),
    }


def _name(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    # A padded head has ids that the tokenizer has no name for.
    return cast("str | None", tokenizer.convert_ids_to_tokens(token_id)) or ""


@cache
def _byte_of_letter() -> dict[str, int]:
    """Byte-level BPE writes printable bytes as themselves and the others as letters from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }
