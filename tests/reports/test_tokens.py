"""The per-token view in Chromium: what it shows is what was recorded."""

import json
import math
import re
import shutil

import pytest
from token_runs import write_run

from tutelage.reports.page import write_report
from tutelage.reports.sheets import LISTED, WORST

pytestmark = pytest.mark.browser

SIZE = 15_000_000  # bytes of the largest page
LOADED = 5_000  # ms that it may take to open beyond a small page
FRAME = 50  # ms: the middle frame while scrolling, with two busy cores to spare


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("tokens"), rollouts=5, tokens=130)


@pytest.fixture(scope="module")
def page_file(run, tmp_path_factory):
    return write_report([run], output=tmp_path_factory.mktemp("page") / "report.html")


def records(run, step):
    lines = (run / "rollouts" / f"step-{step}.jsonl").read_text().splitlines()
    return {record["id"]: record for record in map(json.loads, lines)}


def shown(page):
    page.locator("html[data-ready=yes]").wait_for()  # figures above move the text no more
    page.locator(".tv-text .tv-t").first.wait_for()


def options(page, id):
    return page.locator(f"#tv-{id} option").all_inner_texts()


def text_of(page, question):
    """The tokens of a question's answer, scrolled into sight."""
    row = page.locator(".tv-row", has_text=f"question {question}").first
    row.scroll_into_view_if_needed()
    row.locator(".tv-text .tv-t").first.wait_for()
    return row.locator(".tv-text")


def panel(page):
    """Both lists as (name, probability), and all numbers by title."""
    return page.evaluate(
        """() => {
          const side = (box) => Array.from(box.querySelectorAll("li"), (li) =>
            [li.querySelector(".tv-name").textContent, li.querySelector(".tv-number").textContent]);
          const boxes = document.querySelectorAll("#tv-panel .tv-lists > div");
          const terms = document.querySelectorAll("#tv-panel dt");
          const number = (term) => [term.textContent, term.nextSibling.textContent];
          return {
            lists: Array.from(boxes, side),
            heading: document.querySelector("#tv-panel h3")?.textContent,
            text: document.getElementById("tv-panel").textContent,
            numbers: Object.fromEntries(Array.from(terms, number)),
          };
        }"""
    )


def value(text):
    """The number in words such as "≈ −0.31 nats"."""
    return float(re.search(r"[-\d.e]+", text.replace("−", "-"))[0])


def name(token):
    return token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")


TITLES = {
    "Reverse KL": ("kl/reverse", 1),
    "Log-ratio of the sampled token": ("reward/mean", -1),
    "Student entropy": ("entropy/student", 1),
    "Teacher entropy": ("entropy/teacher", 1),
    "Overlap": ("overlap/ratio", -1),
    "Overlap advantage": ("overlap/advantage", -1),
    "Token weight": ("weight", 1),
}


def test_pointing_at_a_token_shows_what_was_recorded_of_it(browse, page_file, run):
    page = browse(page_file)
    shown(page)
    record = records(run, 40)["q0"]
    tokens = text_of(page, "q0").locator(".tv-t")
    assert tokens.count() == len(record["tokens"])
    kl = record["scores"]["kl/reverse"]
    whole = set(sorted(range(len(kl)), key=lambda i: -kl[i])[:WORST])
    for place in (0, 1, 17, 64, 129, max(whole, key=lambda i: kl[i])):
        tokens.nth(place).hover()
        page.wait_for_timeout(60)
        found = panel(page)
        assert found["heading"] == name(record["tokens"][place])
        for side, listed in zip(("student", "teacher"), found["lists"], strict=True):
            ids = record["likely"][side]["ids"][place]
            logprobs = record["likely"][side]["logprobs"][place]
            count = len(ids) if place in whole else LISTED
            assert [n for n, _ in listed] == [
                name(record["vocabulary"][str(i)]) for i in ids[:count]
            ]
            for (_, told), logprob in zip(listed, logprobs, strict=False):
                p, tolerance = 100 * math.exp(logprob), (0.06 if place in whole else 1.4)
                if told.startswith("<"):
                    assert p < 0.0011 or place not in whole
                else:
                    assert value(told) == pytest.approx(p, abs=tolerance, rel=0.02)
        for title, (key, _) in TITLES.items():
            told, true = found["numbers"][title], record["scores"][key][place]
            assert value(told) == pytest.approx(true, abs=6e-3 if place in whole else 0.2, rel=6e-3)
            assert place not in whole or not told.startswith("≈")
        wanted = name(record["vocabulary"][str(record["likely"]["teacher"]["ids"][place][0])])
        assert "The teacher wanted" in found["text"]
        assert wanted == name(record["tokens"][place]) or wanted in found["text"]


@pytest.mark.parametrize("title", TITLES)
def test_the_worst_token_is_the_extreme_of_the_signal(browse, page_file, run, title):
    key, direction = TITLES[title]
    page = browse(page_file)
    shown(page)
    page.select_option("#tv-signal", label=title)
    every = [
        (direction * v, record["id"], place)
        for record in records(run, 40).values()
        for place, v in enumerate(record["scores"][key])
    ]
    every.sort(key=lambda it: -it[0])
    page.click("#tv-worst")
    page.locator("#tv-active").wait_for()
    status = page.locator("#tv-status").inner_text()
    assert value(status.split(title)[-1]) == pytest.approx(direction * every[0][0], rel=6e-3)
    found = panel(page)
    assert value(found["numbers"][title]) == pytest.approx(direction * every[0][0], rel=6e-3)
    worst = {(q, place) for v, q, place in every if v >= every[0][0] - 1e-9}
    assert status.split()[-1] in {q for q, _ in worst}
    before = direction * value(found["numbers"][title])
    for _ in range(3):  # next is never worse, and back again
        page.click("#tv-next")
        page.wait_for_timeout(80)
        after = direction * value(panel(page)["numbers"][title])
        assert after <= before + 1e-6
        before = after
    page.click("#tv-previous")
    page.wait_for_timeout(80)
    assert direction * value(panel(page)["numbers"][title]) >= before - 1e-6


def test_verdicts_checkpoints_and_sides_can_be_chosen(browse, page_file, run):
    page = browse(page_file)
    shown(page)
    by_step = {step: records(run, step) for step in (0, 40)}
    verdicts = {
        step: {
            q: {1.0: "right", 0.0: "wrong", None: "unjudged"}[r["reward"]] for q, r in them.items()
        }
        for step, them in by_step.items()
    }

    def listed():
        facts = page.locator(".tv-row .tv-facts").all_inner_texts()
        return sorted(m[1] for text in facts if (m := re.search(r"question (q\d+)", text)))

    assert options(page, "view") == ["run · step 0", "run · step 40"]
    assert page.locator("#tv-view").input_value() == "1"
    for step, place in ((40, "1"), (0, "0")):
        page.select_option("#tv-view", place)
        for verdict in ("right", "wrong", "unjudged"):
            page.select_option("#tv-filter", verdict)
            assert listed() == sorted(q for q, v in verdicts[step].items() if v == verdict)
    page.select_option("#tv-filter", "all")
    assert listed() == sorted(by_step[0])
    page.select_option("#tv-beside", "1")
    shown(page)
    sides = text_of(page, "q0")
    assert sides.count() == 2
    for side, step in ((0, 0), (1, 40)):
        last = sides.nth(side).locator(".tv-t")
        assert last.count() == len(by_step[step]["q0"]["tokens"])
        last.nth(5).hover()
        page.wait_for_timeout(60)
        assert panel(page)["heading"] == name(by_step[step]["q0"]["tokens"][5])
        assert f"step {step}" in panel(page)["text"]
    page.select_option("#tv-filter", "differs")
    assert listed() == sorted(q for q in by_step[0] if verdicts[0][q] != verdicts[40][q])


def test_the_same_question_under_two_runs_stands_side_by_side(browse, run, tmp_path):
    other = write_run(tmp_path, rollouts=3, tokens=40, seed=1, name="other")
    page = browse(write_report([run, other], output=tmp_path / "report.html"))
    shown(page)
    names = options(page, "beside")
    assert names == [
        "nothing",
        "run · step 0",
        "run · step 40",
        "other · step 0",
        "other · step 40",
    ]
    page.select_option("#tv-beside", label="other · step 40")
    shown(page)
    assert text_of(page, "q1").count() == 2
    theirs = records(other, 40)["q1"]
    assert text_of(page, "q1").nth(1).locator(".tv-t").count() == len(theirs["tokens"])
    text_of(page, "q4")
    assert "not recorded there" in page.locator(".tv-row", has_text="question q4").inner_text()


def test_everything_works_from_the_keyboard(browse, page_file, run):
    page = browse(page_file)
    shown(page)
    page.locator("#tv-signal").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    for _ in range(20):
        if page.evaluate("document.activeElement.className") == "tv-text":
            break
        page.keyboard.press("Tab")
    record = records(run, 40)["q0"]
    assert panel(page)["heading"] == name(record["tokens"][0])
    for key, place in (
        ("ArrowRight", 1),
        ("ArrowRight", 2),
        ("ArrowLeft", 1),
        ("End", 129),
        ("Home", 0),
    ):
        page.keyboard.press(key)
        assert panel(page)["heading"] == name(record["tokens"][place])
    active = page.evaluate("document.activeElement.getAttribute('aria-activedescendant')")
    assert page.locator(f"#{active}").get_attribute("aria-selected") == "true"
    top = page.evaluate("document.getElementById('tv-active').offsetTop")  # in the answer
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.getElementById('tv-active').offsetTop") > top
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.getElementById('tv-active').offsetTop") == pytest.approx(
        top, abs=4
    )
    page.keyboard.press("w")
    page.wait_for_timeout(200)
    assert page.locator("#tv-status").inner_text().startswith("Worst: ")
    worst = max(v for r in records(run, 40).values() for v in r["scores"]["kl/reverse"])
    assert value(panel(page)["numbers"]["Reverse KL"]) == pytest.approx(worst, rel=6e-3)
    page.keyboard.press("n")
    page.wait_for_timeout(100)
    assert page.locator("#tv-status").inner_text().startswith("Worst but 1: ")
    page.keyboard.press("p")
    page.wait_for_timeout(100)
    assert value(panel(page)["numbers"]["Reverse KL"]) == pytest.approx(worst, rel=6e-3)


HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "<img src=x onerror=alert(3)>",
    '"><b onmouseover=alert(4)>',
    "javascript:alert(5)",
    "\u202egnihtyna\u202c",
    "\x1b[31mred\x1b[0m",
    "\u200b",
    "{{ 7 * 7 }}",
    "\x00\x07",
    "]]>",
    "<!--",
    "\u0301",
    "x" * 1_000_000,
    "é",
]


def test_hostile_texts_are_texts(browse, run, tmp_path):
    hostile = shutil.copytree(run, tmp_path / "run")
    for file in (hostile / "rollouts").iterdir():
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for record in lines:
            record["question"] = record["answer"] = "".join(HOSTILE[:5])
            for place, text in enumerate(HOSTILE):
                record["tokens"][place] = text
                record["completion_ids"][place] = 10**6 + place
                record["vocabulary"][str(10**6 + place)] = text
                record["likely"]["teacher"]["ids"][place][0] = 10**6 + place
            record["finish_reason"] = "<script>alert(6)</script>"
        file.write_text("".join(json.dumps(record) + "\n" for record in lines))
    page = browse(write_report([hostile], output=tmp_path / "report.html"))
    shown(page)
    tokens = text_of(page, "q0").locator(".tv-t")
    texts = tokens.all_text_contents()
    for place in range(len(HOSTILE)):
        tokens.nth(place).hover()
    page.click("#tv-worst")
    assert texts[:5] == HOSTILE[:5]
    assert texts[5] == "⟨U+202E⟩gnihtyna⟨U+202C⟩"
    assert texts[6] == "red"
    assert texts[7] == "⟨U+200B⟩"
    assert texts[9] == "⟨U+0000⟩⟨U+0007⟩"
    assert texts[12] == "◌\u0301"
    assert texts[13].endswith("(999,800 more characters)")
    assert page.locator("#tokens img, #tokens script, #tokens b[onmouseover]").count() == 0


def test_white_space_special_tokens_and_bytes_can_be_seen(browse, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    file = copy / "rollouts" / "step-40.jsonl"
    record = json.loads(file.read_text().splitlines()[0])
    put = {0: " ", 1: "\n", 2: "\t", 3: "a  b", 4: "�", 5: "�", 6: "�", 7: "�", 8: "<end>"}
    for place, text in put.items():
        record["tokens"][place] = text
        record["completion_ids"][place] = 5_000 + place
    record["bytes"] = {"5004": "e282", "5005": "ac", "5007": "ff"}
    record["tokens"][6], record["special"] = ".", [5_008]
    file.write_text(json.dumps(record) + "\n")
    page = browse(write_report([copy], output=tmp_path / "report.html"))
    shown(page)
    tokens = text_of(page, "q0").locator(".tv-t")
    assert tokens.all_text_contents()[:9] == [
        "␣",
        "⏎\n",
        "⇥\t",
        "a  b",
        "€",
        "‥",
        ".",
        "FF",
        "<end>",
    ]
    assert "tv-special" in tokens.nth(8).get_attribute("class")
    assert "tv-bytes" in tokens.nth(7).get_attribute("class")
    tokens.nth(5).hover()
    page.wait_for_timeout(60)
    assert "bytes of “€”" in panel(page)["text"]
    assert panel(page)["heading"] == "AC"


@pytest.mark.parametrize("dark", [False, True])
def test_no_serious_fault_of_access_and_every_colour_leaves_text_readable(
    browse, picture, page_file, dark
):
    from axe_playwright_python.sync_playwright import Axe

    page = browse(page_file, dark=dark)
    shown(page)
    page.select_option("#tv-signal", label="Log-ratio of the sampled token")
    page.click("#tv-worst")
    page.wait_for_timeout(200)
    picture(page, f"tokens-{'dark' if dark else 'light'}")
    page.select_option("#tv-beside", "0")
    shown(page)
    page.click("#tv-next")
    page.wait_for_timeout(200)
    picture(page, f"tokens-two-{'dark' if dark else 'light'}")
    found = Axe().run(page, context="#tokens").response["violations"]
    bad = [v for v in found if v["impact"] in ("serious", "critical")]
    assert not bad, [(v["id"], v["nodes"][0]["html"][:200]) for v in bad]
    contrast = page.evaluate(
        """() => {
          const canvas = document.createElement("canvas");
          const probe = canvas.getContext("2d", { willReadFrequently: true });
          const light = (colour) => {
            probe.fillStyle = colour; probe.fillRect(0, 0, 1, 1);
            const [r, g, b] = Array.from(probe.getImageData(0, 0, 1, 1).data, (c) => c / 255)
              .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const box = document.querySelector(".tv"), worst = [];
          for (const side of ["hot", "cool"]) for (let q = 1; q <= 11; q++) {
            const span = document.createElement("span");
            span.className = `tv-t tv-${side} tv-q${q}`;
            box.append(span);
            const style = getComputedStyle(span);
            const a = light(style.color), b = light(style.backgroundColor);
            worst.push((Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
            span.remove();
          }
          return Math.min(...worst);
        }"""
    )
    assert contrast >= 4.5


def test_a_narrow_window_shows_text_and_token(browse, picture, page_file):
    page = browse(page_file, width=400)
    shown(page)
    page.click("#tv-worst")
    page.wait_for_timeout(200)
    picture(page, "tokens-narrow")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    for part in ("#tv-active", "#tv-panel h3"):
        assert page.locator(part).is_visible()


@pytest.mark.timeout(600)
def test_two_hundred_rollouts_of_two_thousand_tokens_fit_and_stay_smooth(
    browse, page_file, tmp_path
):
    run = write_run(tmp_path, rollouts=100, tokens=2_000, vocabulary=30_000, distinct=10)
    file = write_report([run], output=tmp_path / "report.html")
    assert file.stat().st_size < SIZE

    def opened(file):
        page = browse(file)
        shown(page)
        load = "performance.timing.loadEventEnd - performance.timing.navigationStart"
        page.wait_for_function("performance.timing.loadEventEnd > 0")
        return page, page.evaluate(load)

    _, small = opened(page_file)
    page, loaded = opened(file)
    assert loaded - small < LOADED
    listed = page.evaluate(
        "(({ listed, least }) => [listed, least])"
        "(JSON.parse(document.getElementById('data-tokens').textContent))"
    )
    assert listed[0] == LISTED
    assert listed[1] <= 1e-3
    frames = page.evaluate(
        """async () => {
          const list = document.getElementById("tv-rows"), frames = [];
          const next = () => new Promise(requestAnimationFrame);
          for (let i = 0, last = await next(); i < 200; i++) {
            list.scrollTop += 300;
            const now = await next();
            frames.push(now - last);
            last = now;
          }
          frames.sort((a, b) => a - b);
          return { middle: frames[100], late: frames[190], scrolled: list.scrollTop,
            tokens: document.querySelectorAll(".tv-t").length };
        }"""
    )
    print(f"{file.stat().st_size:,} bytes; loaded in {small} and {loaded} ms; frames: {frames}")
    assert frames["scrolled"] > 50_000
    assert frames["middle"] < FRAME
    assert frames["late"] < 4 * FRAME
    assert frames["tokens"] <= 12_000  # of 200,000 at this checkpoint
    page.click("#tv-worst")
    page.locator("#tv-active").wait_for(timeout=10_000)
    content = (tmp_path / "run" / "rollouts" / "step-40.jsonl").read_text().splitlines()
    worst = max(max(json.loads(line)["scores"]["kl/reverse"]) for line in content)
    assert value(panel(page)["numbers"]["Reverse KL"]) == pytest.approx(worst, rel=6e-3)
