"""What the pages say is what the code does."""

import re
import subprocess
import sys

import pytest
import yaml
from doc_scripts import DOCS, ROOT, script

import tutelage
from tutelage.config import config_keys
from tutelage.config.reading import preset_names
from tutelage.lab.suites import SUITES

PROCESSOR_SECONDS = 0.1


def test_generated_pages_are_those_of_the_parser_and_the_settings():
    """`make pages` writes them anew."""
    stale = [
        file.name
        for file, text in script("pages").pages().items()
        if file.read_text(encoding="utf-8") != text
    ]
    assert stale == []


def test_the_settings_page_has_a_row_for_every_key():
    text = (DOCS / "reference/configuration.md").read_text()
    told = set(re.findall(r"^\| `([^`]+)` \|", text.replace(".NAME", ""), re.M))
    everything = tuple(key.removesuffix("*") for key in told if key.endswith(".*"))
    for key in config_keys():
        assert key.removesuffix(".type") in told or key.startswith(everything), key


def test_every_public_name_exists_and_has_its_place_in_the_reference():
    shown = re.findall(r"^::: tutelage\.(\w+)$", (DOCS / "reference/python.md").read_text(), re.M)
    assert sorted(shown) == sorted(set(tutelage.__all__) - {"__version__"})
    assert sorted(tutelage.__all__) == sorted({*tutelage._HOMES, "__version__"})
    for name in tutelage.__all__:
        assert getattr(tutelage, name).__doc__, name


def test_import_of_the_package_loads_nothing_heavy():
    code = (
        "import sys, time; started = time.process_time(); import tutelage; "
        f"assert time.process_time() - started < {PROCESSOR_SECONDS}; "
        "heavy = {'numpy', 'pydantic', 'ray', 'torch', 'transformers', 'yaml'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def pages_of(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    children = nav.values() if isinstance(nav, dict) else nav
    return [page for child in children for page in pages_of(child)]


def test_every_page_has_its_place_in_the_site():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    files = {
        str(file.relative_to(DOCS))
        for kind in ("md", "ipynb")
        for file in DOCS.rglob(f"*.{kind}")
        if not file.is_relative_to(DOCS / "_make")
    }
    assert sorted(pages_of(nav)) == sorted(files)


def words_of_the_code() -> set[str]:
    """Every name in the source, every quoted word, and every setting."""
    source = "\n".join(file.read_text() for file in (ROOT / "src/tutelage").rglob("*.py"))
    keys = {part for key in config_keys() for part in (key, key.split(".")[-1])}
    quoted = re.findall(r"[\"']([^\"'\n]+)[\"']", source)
    return {*re.findall(r"\w+", source), *quoted, *keys, *preset_names(), "preset"}


def exists(name: str, known: set[str]) -> bool:
    """Whether a file, a setting with its value, a command or a name of the code is there."""
    if name.endswith((".py", "/")):
        return (ROOT / name).exists() or (ROOT / "src/tutelage" / name).exists()
    if name.startswith("{"):
        return isinstance(yaml.safe_load(name), dict)
    if name.endswith("*"):
        return any(preset.startswith(name[:-1]) for preset in preset_names())
    if name.startswith("tutelage "):
        page = (DOCS / "reference/cli.md").read_text()
        words = name.split()[1:]
        return any(f"\n## {title}\n" in page for title in (" ".join(words), words[0]))
    key, _, value = name.partition(": ")
    words = [key.removeprefix("--"), *([value] if value.isidentifier() else [])]
    return all({word, word.split()[0]} & known for word in words)


@pytest.mark.parametrize(("page", "least"), [("objective.md", 80), ("papers.md", 90)])
def test_the_mathematics_speaks_in_the_names_of_the_code(page, least):
    text = re.sub(r"```.*?```", "", (DOCS / page).read_text(), flags=re.S)
    known, named = words_of_the_code(), re.findall(r"`([^`]+)`", text)
    assert len(named) > least
    assert [name for name in named if not exists(name, known)] == []


def test_every_suite_of_the_lab_is_in_the_paper_index():
    text = (DOCS / "papers.md").read_text()
    assert [name for name in SUITES if f"`{name}`" not in text] == []


@pytest.mark.parametrize(
    "verb", ["train", "check", "align", "rescue cold-start", "rescue controls"]
)
def test_a_help_page_with_settings_says_what_its_flags_are_for(verb):
    words = [sys.executable, "-m", "tutelage", *verb.split(), "--help"]
    page = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    options = page[page.index("╭") :]
    flags = re.findall(r"^│ (--[\w-]+)", options, re.M)
    assert "--json" in flags
    for flag in flags:
        meaning = options.split(flag, 1)[1].split("│ -")[0]
        assert re.search(r"[a-z]{3,} [a-z]{2,}", meaning.split("(default")[0]), flag


def test_printed_outputs_are_compared_by_their_structure():
    alike = script("tutorials").alike
    shown = "accuracy_before    0.326\nstep               60\nmean [0.1, 0.2]\n"
    assert alike(shown, "accuracy_before    0.3\nstep 120\nmean [-1e-05, 20]\n")
    assert not alike(shown, shown.replace("mean", "median"))
    assert not alike(shown, shown.replace("step", "steps"))
    assert alike("...\nstep 3\n", "note: a.\nnote: b.\nstep 7\n")
    assert not alike("...\nstep 3\n", "note: a.\nnote: b.\nsteps 7\n")
    many = "".join(f"{name} 1\n" for name in "abcdefghij")
    assert alike(many, many.replace("c", "x"))
    assert not alike(many, many.replace("c", "x").replace("d", "y").replace("e", "z"))
