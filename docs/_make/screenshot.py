"""The picture of the per-token view in its tutorial: `make picture`."""

import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

import tutelage

PICTURE = Path(__file__).parents[1] / "pictures/tokens.png"


def main(run: Path = Path("runs/picture/compatible-0/run")) -> None:
    """Write the page of the picture's run, and photograph its worst token before and after."""
    page_file = tutelage.report([run])
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1180, "height": 760})
        page.goto(page_file.resolve().as_uri())
        page.select_option("#tv-view", label="run · step 0")
        page.select_option("#tv-beside", label="run · step 120")
        page.select_option("#tv-filter", label="verdicts differ")
        page.locator("#tv-view").scroll_into_view_if_needed()
        page.get_by_role("button", name="Worst token").click()
        page.wait_for_timeout(500)
        shot = page.screenshot(clip={"x": 285, "y": 60, "width": 875, "height": 630})
        browser.close()
    Image.open(BytesIO(shot)).convert("RGB").quantize(48).save(PICTURE, optimize=True)
    print(PICTURE)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
