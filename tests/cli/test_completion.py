"""What shells complete, asked of the shells themselves."""

import os
import pty
import select
import shutil
import subprocess
import time

import pytest

import tutelage
from tutelage.cli import VERBS, main
from tutelage.config import config_keys
from tutelage.errors import UsageError


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh", "fish"):
        (folder / f"{shell}.sh").write_text(tutelage.completion(shell))
    return folder


def offered(scripts, line):
    """What bash offers for the last word of a line."""
    code = (
        f'source "{scripts}/bash.sh"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        "last=${COMP_WORDS[COMP_CWORD]}; before=${COMP_WORDS[COMP_CWORD-1]}; "
        '_tutelage tutelage "$last" "$before"; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    words = ["bash", "--norc", "-c", code, "bash", *line.split(" ")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.stderr == ""
    return set(done.stdout.split())


def test_bash_offers_verbs_flags_settings_and_values(scripts):
    assert offered(scripts, "tutelage ") == set(VERBS)
    assert offered(scripts, "tutelage re") == {"rescue", "report"}
    assert offered(scripts, "tutelage rescue ") == {"cold-start", "controls", "prompts"}
    assert offered(scripts, "tutelage train --re") == {"--resume"}
    assert "--optimizer.lr" in offered(scripts, "tutelage train -c run.yaml --opt")
    assert offered(scripts, "tutelage train --objective.tail r") == {
        "renormalise",
        "reference_code",
    }
    assert offered(scripts, "tutelage rescue cold-start --then") == {"--then"}
    assert offered(scripts, "tutelage lab build --out") == {"--output"}
    assert offered(scripts, "tutelage eval --optimizer") == set()  # it takes no config
    assert offered(scripts, "tutelage train run") == set()  # files are readline's own


def test_every_setting_is_offered_where_a_config_is_taken(scripts):
    for verb in ("train", "check", "plan", "align", "rescue controls"):
        known = offered(scripts, f"tutelage {verb} --")
        keys = {f"--{key}" for key in config_keys()}
        assert keys <= known
        assert {"--objective", "--teacher.path", "--config"} <= known


def test_a_tab_in_an_interactive_bash_completes(scripts):
    pid, terminal = pty.fork()
    if not pid:
        os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
    try:
        os.write(terminal, f'bind "set bell-style none"; . {scripts}/bash.sh\n'.encode())
        os.write(terminal, b"echo tute''lage ready\n")
        read_until(terminal, b"tutelage ready")
        os.write(terminal, b"tutelage resc\tcold\t--the\t")
        assert b"rescue cold-start --then " in read_until(terminal, b"--then ")
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)


def read_until(terminal, wanted, seconds=20.0):
    seen, end = b"", time.monotonic() + seconds
    while wanted not in seen and time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            seen += os.read(terminal, 4096)
    return seen


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_take_their_script(scripts, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    subprocess.run([shell, "-n", scripts / f"{shell}.sh"], check=True)
    if shell == "fish":
        code = f"source {scripts}/fish.sh; complete -C 'tutelage train --objective.tail r'"
        done = subprocess.run([shell, "-c", code], capture_output=True, text=True)
        assert set(done.stdout.split()) == {"renormalise", "reference_code"}
        code = f"source {scripts}/fish.sh; complete -C 'tutelage train --opt'"
        done = subprocess.run([shell, "-c", code], capture_output=True, text=True)
        assert "--optimizer.lr" in done.stdout.split()


def test_another_shell_is_refused(capsys):
    assert main(["completion", "tcsh"]) == 2
    assert "there is no completion for 'tcsh'" in capsys.readouterr().err
    with pytest.raises(UsageError):
        tutelage.completion("tcsh")
