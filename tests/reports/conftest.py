"""Pages in Debian's Chromium, watched for errors, requests and dialogs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import tutelage
from helpers import tiny_run
from tutelage.config import parse_config
from tutelage.lab.embedded import EMBEDDED_SPEC, VERIFIER, model_path
from tutelage.lab.tasks import write_prompts

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """One browser for all pages; without one the tests fail and say what to do."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium")
    assert program, "there is no `chromium` on the PATH; `make test-browser` installs it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        yield browser
        browser.close()


@pytest.fixture
def browse(chromium: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a file in a window of its own: `browse(path, dark=False, width=1280, height=900)`.

    The test fails where a page logged an error or a warning, threw, asked for anything but itself
    and what it holds inline, or opened a dialog or another window: `browse.faults`.
    """
    contexts = []
    faults: list[str] = []

    def watch(page: Page, address: str) -> None:
        def asked(url: str) -> None:
            if url.split("#")[0] != address and not url.startswith(("data:", "blob:")):
                faults.append(f"request: {url:.200}")

        def dialog(it) -> None:
            faults.append(f"dialog: {it.message:.200}")
            it.dismiss()

        page.on("console", lambda m: m.type in ("error", "warning") and faults.append(m.text))
        page.on("pageerror", lambda error: faults.append(f"thrown: {error}"))
        page.on("request", lambda request: asked(request.url))
        page.on("dialog", dialog)
        page.on("popup", lambda popup: faults.append(f"window: {popup.url:.200}"))

    def browse(
        path: str | Path, *, dark: bool = False, width: int = 1280, height: int = 900
    ) -> Page:
        context = chromium.new_context(
            color_scheme="dark" if dark else "light",
            viewport={"width": width, "height": height},
            accept_downloads=True,
        )
        contexts.append(context)
        page = context.new_page()
        address = Path(path).resolve().as_uri()
        watch(page, address)
        page.goto(address)
        return page

    browse.faults = faults
    yield browse
    for context in contexts:
        context.close()
    assert not faults, faults


@pytest.fixture
def picture(request: pytest.FixtureRequest) -> Callable[[Page, str], Path]:
    """Keeps a screenshot of the whole page as NAME.png in the folder of --screenshots."""
    folder = Path(request.config.getoption("--screenshots"))
    folder.mkdir(parents=True, exist_ok=True)

    def picture(page: Page, name: str) -> Path:
        path = folder / f"{name}.png"
        page.screenshot(path=path, full_page=True)
        return path

    return picture


@pytest.fixture(scope="session")
def runs(gpt2_pair, tmp_path_factory) -> tuple[Path, Path]:
    """Two tiny runs that differ in their learning rate; read them, do not change them."""
    folder = tmp_path_factory.mktemp("reported")
    paths = []
    for name, lr in (("slow", 1e-4), ("fast", 3e-3)):
        make = tiny_run(folder, *gpt2_pair, lr=lr)
        paths.append(tutelage.train(make(run={"dir": str(folder / name), "steps": 6})).run)
    return paths[0], paths[1]


@pytest.fixture(scope="session")
def judged(tmp_path_factory) -> Path:
    """Two suites of the lab in their short form."""
    folder = tmp_path_factory.mktemp("lab")
    return tutelage.lab_suites(
        ["compatible", "dynamics"], seeds=2, short=True, output=folder
    ).folder


@pytest.fixture(scope="session")
def aligned(tmp_path_factory) -> Path:
    """A small alignment of two embedded teachers."""
    folder = tmp_path_factory.mktemp("aligned")
    write_prompts(folder / "prompts.jsonl", EMBEDDED_SPEC.task.eval_prompts(24, seed=3))
    tree = {
        "student": {"path": str(model_path("student"))},
        "teacher": {"path": str(model_path("compatible"))},
        "data": {"prompts": str(folder / "prompts.jsonl"), "verifier": VERIFIER.model_dump()},
        "rollout": {"max_new_tokens": 28, "batch_size": 64},
        "align": {
            "questions": 6,
            "spines": 2,
            "samples": 6,
            "budget": 4000,
            "rollouts": 4,
            "teachers": {"incompatible": {"path": str(model_path("incompatible"))}},
        },
    }
    tutelage.align(parse_config(tree), folder / "align")
    return folder / "align"
