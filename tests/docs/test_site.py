"""The site builds, opens without a network, and its tutorials and notebook print what they show."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from doc_scripts import DOCS, ROOT, script

pytestmark = pytest.mark.docs


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Loads(HTMLParser):
    """What a page loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        address = told.get("src") or (told.get("href") if tag == "link" else None)
        if address and told.get("rel") not in ("canonical", "next", "prev"):
            self.found.append(address)


def loaded(site: Path) -> Iterator[tuple[Path, str]]:
    for page in site.rglob("*.html"):
        reader = Loads()
        reader.feed(page.read_text(encoding="utf-8"))
        yield from ((page, address) for address in reader.found)


def test_no_page_loads_anything_from_elsewhere(site):
    addresses = list(loaded(site))
    assert len({page for page, _ in addresses}) > 35
    assert [(p, a) for p, a in addresses if re.match(r"(\w+:)?//", a)] == []
    for page, address in addresses:
        path = address.split("#")[0].split("?")[0]
        base = site if page.name == "404.html" else page.parent
        assert path.startswith("data:") or (base / path.lstrip("/")).exists(), (page, address)


def test_every_public_function_has_its_signature_in_the_site(site):
    page = (site / "reference/python.html").read_text(encoding="utf-8")
    for name in ("train", "check", "align", "load_config", "eval"):
        assert f'id="tutelage.{name}"' in page
    assert "Raises" in page


@pytest.mark.timeout(3000)
def test_the_tutorials_print_what_they_show(tmp_path):
    """`make outputs` writes them anew; numbers may differ from machine to machine."""
    tutorials = script("tutorials")
    stale, blocks = [], 0
    for page in tutorials.PAGES:
        for block, printed in tutorials.run_page(page.read_text(encoding="utf-8"), tmp_path):
            blocks += 1
            if not tutorials.alike(block.text, printed):
                stale.append((page.name, block.text, printed))
    assert stale == []
    assert blocks > 20


def test_every_tutorial_is_run():
    run = set(script("tutorials").PAGES)
    assert {*(DOCS / "tutorials").glob("*.md"), DOCS / "start.md"} == run


@pytest.mark.timeout(1500)
def test_the_notebook_prints_what_it_shows():
    """`make outputs` writes it anew."""
    import nbformat

    notebook, tutorials = script("notebook"), script("tutorials")
    kept = nbformat.read(notebook.NOTEBOOK, as_version=4)
    shown, now = notebook.printed(kept), notebook.printed(notebook.executed(kept))
    assert any(shown)
    pairs = zip(shown, now, strict=True)
    assert [pair for pair in pairs if not tutorials.alike(*pair)] == []
