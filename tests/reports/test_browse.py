"""What watches the pages sees what it should."""

import pytest

pytestmark = pytest.mark.browser


def test_a_quiet_page_passes(browse, picture, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<!doctype html><title>quiet</title><p>quiet<img src='data:image/gif,'>")
    opened = browse(page, dark=True, width=400)
    assert opened.title() == "quiet"
    assert opened.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert picture(opened, "quiet").stat().st_size > 0
    assert browse.faults == []


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("<script>alert('boo')</script>", "dialog: boo"),
        ("<script>throw new Error('boo')</script>", "thrown: boo"),
        ("<script>console.error('boo')</script>", "boo"),
        ("<img src='https://example.invalid/boo.png'>", "request: https://example.invalid/boo"),
        ("<img src='boo.png'>", "request: file:"),
        ("<script>window.open('about:blank')</script>", "window: about:blank"),
    ],
)
def test_a_page_that_does_more_than_show_is_caught(browse, tmp_path, body, fault):
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><title>loud</title>{body}")
    browse(page).wait_for_timeout(50)
    assert any(found.startswith(fault) for found in browse.faults)
    browse.faults.clear()
