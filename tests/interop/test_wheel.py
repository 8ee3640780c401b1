"""The package as pip installs it from its wheel."""

import resource
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import tutelage

SOURCE = Path(__file__).parents[2] / "src" / "tutelage"
EXTRAS = {"docs", "hub", "lora", "ray", "rescue", "semantic", "serve", "track", "verify"}


def test_the_wheel_holds_the_source_and_nothing_else():
    installed = Path(tutelage.__file__).parent
    assert installed != SOURCE
    files = [Path(str(f)) for f in distribution("tutelage").files or ()]
    packed = {f for f in files if f.parts[0] == "tutelage" and "__pycache__" not in f.parts}
    source = {
        Path("tutelage") / f.relative_to(SOURCE)
        for f in SOURCE.rglob("*")
        if f.is_file() and "__pycache__" not in f.parts
    }
    assert packed == source
    for file in source:
        name = file.relative_to("tutelage")
        assert (installed / name).read_bytes() == (SOURCE / name).read_bytes(), name


def test_what_it_says_of_itself():
    told = distribution("tutelage").metadata
    assert told["Version"] == tutelage.__version__
    assert told["Requires-Python"] == ">=3.11"
    assert set(told.get_all("Provides-Extra")) >= EXTRAS
    assert (Path(sys.executable).parent / "tutelage").is_file()


def test_the_import_and_the_help_page_cost_little():
    for words, most in ((["-c", "import tutelage"], 0.2), (["-m", "tutelage", "--help"], 0.6)):
        taken = []
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert min(taken) < most
