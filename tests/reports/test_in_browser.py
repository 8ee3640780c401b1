"""The page in Chromium: quiet, usable, harmless, accessible."""

import csv
import io

import pytest
from hostile import write_hostile_run

import tutelage

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def pages(runs, aligned, judged, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    hostile = write_hostile_run(folder / "hostile", runs[0])
    given = {"run": [runs[1]], "compared": runs, "align": [aligned], "hostile": [hostile]}
    given["lab"] = [judged]
    given["demo"] = [tutelage.demo(output=folder / "main-job").summary["run_dir"]]
    given["everything"] = [*runs, aligned, hostile]
    return {
        name: tutelage.report(paths, output=folder / f"{name}.html", csv_folder=folder / name)
        for name, paths in given.items()
    }


@pytest.fixture
def shown(browse, pages):
    def shown(name, **options):
        page = browse(pages[name], **options)
        page.wait_for_selector("html[data-ready]")
        return page

    return shown


KINDS = ["run", "compared", "align", "lab", "demo", "hostile"]


@pytest.mark.parametrize("name", [*KINDS, "everything"])
def test_every_figure_is_drawn_and_the_page_fits(shown, picture, name):
    page = shown(name)
    assert page.locator(".plot").count() == page.locator(".plot .main-svg").count() / 3
    looks = {
        "light": {"color_scheme": "light"},
        "dark": {"color_scheme": "dark"},
        "print": {"media": "print"},
    }
    for look, media in looks.items():
        page.emulate_media(**media)
        page.wait_for_timeout(200)
        picture(page, f"{name}-{look}")
    assert not page.locator("nav").is_visible()
    page.emulate_media(media="screen", color_scheme="light")
    page.set_viewport_size({"width": 400, "height": 800})
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    picture(page, f"{name}-narrow")


def test_the_theme_follows_the_system_and_the_button(shown):
    page = shown("run", dark=True)
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(paper)
    page.get_by_role("button", name="Light").press("Enter")
    assert page.evaluate(paper) != dark
    page.get_by_role("button", name="Dark").press("Enter")
    assert page.evaluate(paper) == dark
    page.emulate_media(color_scheme="dark", media="print")
    assert page.evaluate(paper) == "rgb(255, 255, 255)"


def test_a_run_can_be_hidden_from_all_figures_by_keyboard(shown):
    page = shown("compared")
    names = "document.querySelector('[data-figure=kl]').data.map((t) => t.name)"
    assert any(name.startswith("slow") for name in page.evaluate(names))
    page.get_by_label("slow", exact=True).press("Space")
    assert {name.split(",")[0] for name in page.evaluate(names)} == {"fast"}


def test_a_legend_entry_hides_its_curve(shown):
    page = shown("run")
    page.locator("[data-figure=kl] .legendtoggle").first.click()
    page.wait_for_timeout(600)  # plotly waits for a second click
    traces = page.evaluate(
        "document.querySelector('[data-figure=kl]')._fullData.map((t) => t.visible)"
    )
    assert "legendonly" in traces


def test_figures_are_saved_as_pictures_and_as_the_rows_that_the_command_writes(shown, pages):
    page = shown("compared")
    for name in ("accuracy", "depth-kl-reverse", "phases"):
        saved = {}
        for kind in ("PNG", "SVG", "CSV"):
            with page.expect_download() as download:
                page.locator(f"#{name}").get_by_text(kind, exact=True).click()
            assert download.value.suggested_filename == f"{name}.{kind.lower()}"
            saved[kind] = download.value.path().read_bytes()
        assert saved["PNG"].startswith(b"\x89PNG")
        assert b"<svg" in saved["SVG"]
        given = list(csv.reader(io.StringIO(saved["CSV"].decode())))
        path = pages["compared"].with_name("compared") / f"{name}.csv"
        written = list(csv.reader(io.StringIO(path.read_text())))
        assert len(given) == len(written) > 1

        def numbers(rows):
            return [[float(c) if c[:1].isdigit() or c[:1] == "-" else c for c in r] for r in rows]

        for one, other in zip(numbers(given), numbers(written), strict=True):
            assert one == [pytest.approx(v, rel=1e-3) if isinstance(v, float) else v for v in other]


def test_hostile_text_stays_text(shown):
    page = shown("hostile")
    assert page.locator("main script, main img, main a[href^='javascript:']").count() == 0
    assert page.locator("svg a").count() == 0
    assert (
        page.evaluate("document.querySelectorAll('[onmouseover], [onfocus], [onerror]').length")
        == 0
    )
    assert "<script>alert(1)</script>" in page.locator("#samples").inner_text()
    assert (
        "<script>alert(1)</script>"
        in page.locator("#accuracy-source .legendtext").first.text_content()
    )
    page.locator("#samples td").first.hover()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_axe_finds_nothing_serious(shown, name, dark):
    from axe_playwright_python.sync_playwright import Axe

    page = shown(name, dark=dark)
    found = Axe().run(page).response["violations"]
    grave = {
        v["id"]: [n["html"][:200] for n in v["nodes"][:3]]
        for v in found
        if v["impact"] in ("serious", "critical")
    }
    assert not grave, grave
