"""What a terminal would obey never reaches it."""

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.terminal import one_line, printable

HOSTILE = {
    "\x1b[31mred\x1b[0m": "red",
    "\x1b]0;title\x07text": "text",
    "\x1b]52;c;ZXZpbA==\x1b\\text": "text",
    "\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\": "link",
    "\x1bP+q544e\x1b\\dcs": "dcs",
    "\x9b2Jcleared": "cleared",
    "\x9d0;t\x9ctext": "text",
    "\x1b[2J\x1b[Hhome": "home",
    "\x1bcreset": "reset",
    "\x1b(0charset": "charset",
    "abc\rxyz\x08\x7f": "abcxyz",
    "safe\u202egnp.exe\u202c": "safegnp.exe",
    "\u2066iso\u2069\u200f\u061c": "iso",
    "\U000e0041tag": "tag",
    "\ud800half": "half",
    "line\u2028break": "linebreak",
    "\x1b]unfinished": "unfinished",
    "two\n\tlines": "two\n\tlines",
    "नमस्ते क्\u200dष 你好 🙂": "नमस्ते क्\u200dष 你好 🙂",
}


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_escapes_and_marks_of_direction_are_taken_out_whole(text):
    assert printable(text) == HOSTILE[text]


@given(st.text(st.characters(codec=None)) | st.text("\x1b[]P\\m0;\x07\x9b\x9c"))
def test_nothing_a_terminal_obeys_is_left(text):
    left = printable(text)
    allowed = {"\n", "\t", "\u200c", "\u200d"}
    assert all(
        c in allowed or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in left
    )
    left.encode("utf-8")


def test_a_megabyte_of_unfinished_sequences_takes_no_time():
    for part in ("\x1b]", "\x1b[", "\x1b[0;", "\x9d", "\x1bP"):
        started = time.perf_counter()
        printable(part * 500_000)
        assert time.perf_counter() - started < 5


def test_one_line_is_one_and_bounded():
    assert one_line("a\n\x1b[31mb   c") == "a b c"
    assert len(one_line("word " * 100_000, 50)) == 50
