"""Text of models, made safe to look at."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from tutelage.reports.text import visible


def test_terminal_escapes_go_and_unseen_characters_are_spelled_out():
    assert visible("a\x1b[31mred\x1b[0m\x9b1m!") == "ared!"
    assert visible("\x1b]8;;http://x\x07link\x1b]8;;\x1b\\") == "link"
    assert visible("\u202eevil\u202c") == "⟨U+202E⟩evil⟨U+202C⟩"
    assert visible("half \ud800") == "half ⟨U+D800⟩"
    assert visible("bell\x07 esc\x1b7") == "bell⟨U+0007⟩ esc⟨U+001B⟩7"
    assert visible("one\r\ntwo\tthree") == "one\ntwo\tthree"
    assert visible("family 👨\u200d👩 नमस्\u200cते") == "family 👨\u200d👩 नमस्\u200cते"


def test_long_text_is_cut_and_the_rest_counted():
    assert visible("x" * 1_000_000, 10) == "xxxxxxxxxx … (999,990 more characters)"


@given(st.text(st.characters()))
def test_whatever_comes_can_be_written_and_holds_nothing_unseen(text):
    shown = visible(text)
    shown.encode("utf-8")
    unseen = {c for c in shown if unicodedata.category(c) in ("Cc", "Cs")} - {"\t", "\n"}
    assert not unseen
    assert visible(shown) == shown
