"""Mathematics judged in processes that can be killed; functions of the user."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equivalents import DIFFERENT, NOT_RECOGNISED, SAME, TOO_KIND
from tutelage.config import DataConfig, Math
from tutelage.data.final_answer import TAIL, final_answer, last_box, reference_answer, same_text
from tutelage.data.math_worker import compare
from tutelage.data.prompts import load_prompts
from tutelage.data.verify import MathVerifier, choose_verifier, judge, make_verifier
from tutelage.data.worker_pool import WorkerPool
from tutelage.errors import DataError, MachineError, UsageError
from tutelage.types import Prompt, Rollout

pytest.importorskip("math_verify")
HANGS = "9^{9^{9^{9^9}}}"


def asked(answer, name="p"):
    return Prompt(id=name, text="?", answer=answer)


@pytest.fixture(scope="module")
def maths():
    verifier = MathVerifier(Math())
    yield verifier
    verifier.pool.close()


# --- what counts as equal --------------------------------------------------------------------

FORMS = [
    r"First \boxed{77}. No: \boxed{%s}.",
    "We add $x=77$.\n**Answer: %s**",
    "%s",
    "We add $x=77$.\nSo it is $%s$",
]


def test_the_table_holds_200_equivalent_rewrites():
    pairs = [pair for group in SAME.values() for pair in group]
    assert len(set(pairs)) == len(pairs) >= 200
    assert all(reference != answer for reference, answer in pairs if "[3]" not in reference)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", SAME)
def test_equivalent_rewrites_are_right(maths, kind, form):
    pairs = SAME[kind]
    verdicts = maths.many([(asked(reference), form % answer) for reference, answer in pairs])
    assert [p for p, verdict in zip(pairs, verdicts, strict=True) if verdict != 1] == []


@pytest.mark.parametrize("form", FORMS)
def test_other_answers_are_wrong(maths, form):
    verdicts = maths.many([(asked(reference), form % answer) for reference, answer in DIFFERENT])
    assert [p for p, verdict in zip(DIFFERENT, verdicts, strict=True) if verdict != 0] == []


def test_the_limits_are_those_that_the_documentation_lists(maths):
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    listed = re.findall(r"^\| `(.+)` \| `(.+)` \|$", page, re.MULTILINE)
    assert listed == [*NOT_RECOGNISED, *TOO_KIND]
    pairs = sum(map(len, SAME.values()))
    assert f"{pairs} equivalent rewrites are right and {len(DIFFERENT)} other" in page
    for rows, told in ((NOT_RECOGNISED, 0), (TOO_KIND, 1)):
        for reference, answer in rows:
            assert maths(asked(reference), rf"\boxed{{{answer}}}") == told, (reference, answer)


@pytest.mark.parametrize("form", FORMS)
def test_every_reference_of_math_500_verifies_against_itself(maths, data_dir, form):
    prompts = load_prompts(str(data_dir / "MATH-500.json"))
    assert len(prompts) == 500
    verdicts = maths.many([(p, form % p.answer) for p in prompts])
    assert [p.answer for p, v in zip(prompts, verdicts, strict=True) if v != 1] == []


def test_math_verify_itself_reads_every_reference_of_math_500(data_dir):
    answers = [p.answer for p in load_prompts(str(data_dir / "MATH-500.json"))]
    assert [answer for answer in answers if compare(answer, answer, True) is not True] == []


def test_answers_of_math_500_shifted_by_one_question_are_wrong_unless_equal(maths, data_dir):
    prompts = load_prompts(str(data_dir / "MATH-500.json"))
    shifted = [*prompts[1:], prompts[0]]
    verdicts = maths.many(
        [(p, rf"\boxed{{{other.answer}}}") for p, other in zip(prompts, shifted, strict=True)]
    )
    right = [
        (p.answer, other.answer)
        for p, other, verdict in zip(prompts, shifted, verdicts, strict=True)
        if verdict != 0
    ]
    assert sorted(right) == [("3", "3"), ("5", "x=5"), ("7", "7")]


# --- where the answer stands -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer", "is_formula"),
    [
        (r"\boxed{3}", "3", True),
        (r"\boxed{\frac{1}{2}} or rather \boxed{\sqrt{2}}.", r"\sqrt{2}", True),
        (r"\boxed{\left\{ 3 \right.}", r"\left\{ 3 \right.", True),
        (r"\fbox{4}", "4", True),
        (r"\boxed{5} and then \boxed{6", "5", True),
        (r"\boxed {5}", "5", True),
        ("thus\nAnswer: $5$\n", "5", True),
        ("Answer: 3\nno, the answer is 4.\nthanks", "4", True),
        ("**Answer:** 12", "12", True),
        ("Answer: 3\nSo the answer is\n\n$4$\n\nDone.", "4", True),
        ("48/2 = 24\n#### 72", "72", True),
        ("42", "42", True),
        ("The answer is north", "north", True),
        ("It has 42 legs", "It has 42 legs", False),
        ("one\ntwo $3$", "one\ntwo $3$", False),
        ("Answer:", "Answer:", True),
        ("\\boxed{}", None, None),
        ("  \n", None, None),
    ],
)
def test_final_answers(text, answer, is_formula):
    found = final_answer(text)
    assert (found and found.text, found and found.is_formula) == (answer, is_formula)


def test_references_may_be_whole_solutions():
    assert reference_answer("10 + 5 = 15\n15 - 3 = 12\n#### 12") == "12"
    assert reference_answer(r"Since $x$ is even, it is \boxed{\frac{1}{2}}.") == r"\frac{1}{2}"
    assert reference_answer(" $x^2$ ") == "x^2"
    assert reference_answer("1,000") == "1,000"


def test_looking_for_the_answer_takes_linear_time():
    for junk in (
        r"\boxed{",
        "{",
        "answer ",
        "answer: ",
        "\\",
        "$",
        r"\text{",
        "a\n",
        " ",
        "1\\,000",
    ):
        started = time.monotonic()
        final_answer(junk * 40_000)
        reference_answer(junk * 40_000)
        assert time.monotonic() - started < 3, junk


def test_equal_spellings_differ_in_layout_alone():
    for one, other in [
        (r"\left( 3, \dfrac{1}{2} \right)", r"(3,\frac{1}{2})"),
        (r"\text{east}", "east"),
        (r"10,\!080", "10,080"),
        ("x y", "xy"),
    ]:
        assert same_text(one, other)
    for one, other in [("1 2", "12"), ("1 2/3", "12/3"), ("1 ~ 2", "12"), ("1", "-1"), ("x", "X")]:
        assert not same_text(one, other)


def test_only_the_end_of_a_long_text_without_a_mark_is_judged(maths):
    assert maths(asked("5"), "so $5$\n" + "and on it goes\n" * TAIL) == 0


def test_no_answer_is_wrong_and_no_reference_is_unknown(maths):
    assert maths(asked("5"), "") == 0
    assert maths(asked("5"), r"\boxed{}") == 0
    assert maths(asked(" "), r"\boxed{5}") is None
    assert maths(asked(None), r"\boxed{5}") is None


# --- the pool --------------------------------------------------------------------------------


def comparison(reference, answer, is_formula=True):
    return json.dumps([reference, answer, is_formula]).encode()


def math_pool(deadline_s=1.0, size=2, worker="tutelage.data.math_worker"):
    return WorkerPool(
        worker, setting="data.verifier math", deadline_s=deadline_s, size=size, quiet=True
    )


@pytest.fixture
def pool():
    pool = math_pool()
    yield pool
    pool.close()


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """A pool of two processes that run a script of the test."""
    pools = []

    def of(script, **settings):
        (tmp_path / "worker_of_ours.py").write_text(script)
        monkeypatch.syspath_prepend(tmp_path)
        pools.append(math_pool(worker="worker_of_ours", **settings))
        return pools[-1]

    yield of
    for pool in pools:
        pool.close()


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_hanging_comparison_is_killed_at_its_deadline_and_is_unknown(pool):
    jobs = [comparison("5", HANGS), *(comparison("5", f"{i}") for i in range(20))]
    assert pool.ask(jobs[1:]) == [float(i == 5) for i in range(20)]
    before = pool.processes
    started = time.monotonic()
    verdicts = pool.ask(jobs)
    took = time.monotonic() - started
    assert verdicts == [None, *(float(i == 5) for i in range(20))]
    assert 0.9 <= took < 60  # a loaded machine takes longer for a second of processor time
    assert len(pool.processes) == len(before) == 2
    assert len(set(before) - set(pool.processes)) == 1
    assert not any(is_running(pid) for pid in set(before) - set(pool.processes))
    assert pool.ask(jobs[:1] * 3) == [None] * 3
    assert pool.ask(jobs[1:]) == [float(i == 5) for i in range(20)]


def test_processor_time_alone_ends_one_that_computes(worker, monkeypatch):
    monkeypatch.setattr("tutelage.data.worker_pool._PATIENCE", 10_000)
    pool = worker(
        "from tutelage.data.worker import serve\n"
        "def forever(job):\n"
        "    while True: pass\n"
        "serve(lambda: forever)\n",
        deadline_s=0.05,
        size=1,
    )
    assert pool.ask([b"one", b"two"]) == [None, None]
    assert len(pool.processes) == 1


def test_one_that_waits_without_computing_is_killed_by_the_clock(worker):
    pool = worker(
        "import time\n"
        "from tutelage.data.worker import serve\n"
        "serve(lambda: lambda job: time.sleep(1000))\n",
        deadline_s=0.05,
        size=1,
    )
    assert pool.ask([b"one", b"two"]) == [None, None]
    assert len(pool.processes) == 1


def test_a_worker_that_dies_costs_its_own_verdict_alone(worker):
    pool = worker(
        "import os\n"
        "from tutelage.data import math_worker\n"
        "from tutelage.data.worker import serve\n"
        "judge = math_worker.compare\n"
        "def compare(reference, answer, is_formula):\n"
        "    if answer == 'crash': os._exit(3)\n"
        "    if answer == 'noise': os.write(1, b'1'); print('1')\n"
        "    return judge(reference, answer, is_formula)\n"
        "math_worker.compare = compare\n"
        "serve(math_worker.prepare)\n"
    )
    answers = ["5", "crash", "6", "noise", "5.0", "crash!", "crash"]
    verdicts = pool.ask([comparison("5", answer) for answer in answers])
    assert verdicts == [1, None, 0, 0, 1, 0, None]
    assert len(pool.processes) == 2


def test_a_worker_killed_from_outside_is_replaced_without_loss(pool):
    jobs = [comparison("5", f"{i}") for i in range(10)]
    pool.ask(jobs)
    for pid in pool.processes:
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)
    assert pool.ask(jobs) == [float(i == 5) for i in range(10)]
    assert len(pool.processes) == 2


def test_workers_start_when_needed_and_end_with_the_pool():
    pool = math_pool(size=3)
    assert pool.processes == []
    assert pool.ask([]) == []
    assert pool.processes == []
    pool.ask([comparison("5", "5")] * 10)  # equal jobs are one
    assert len(pool.processes) == 1
    pids = pool.processes
    del pool
    assert not any(is_running(pid) for pid in pids)


def test_a_worker_is_light():
    code = (
        "import sys; from tutelage.data.math_worker import compare; assert compare('1', '1', True);"
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'numpy', 'pydantic')))"
    )
    assert subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize("end", ["", "; import os, signal; os.kill(os.getpid(), signal.SIGKILL)"])
def test_no_worker_outlives_its_run(end):
    code = (
        "from tutelage.data.worker_pool import *;"
        "pool = WorkerPool('tutelage.data.math_worker', setting='s', deadline_s=1, size=1);"
        f"pool.start(); print(pool.processes[0], flush=True){end}"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    pid, deadline = int(said.stdout), time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_threads_may_share_a_pool(pool):
    found = {}

    def ask(number):
        jobs = [comparison(str(number), str(i)) for i in range(6)]
        found[number] = pool.ask(jobs)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: [float(i == n) for i in range(6)] for n in range(6)}


def test_a_fork_gets_workers_of_its_own(pool):
    pool.ask([comparison("5", "5.0")])
    pids = pool.processes
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        verdicts = pool.ask([comparison("5", "5.0"), comparison("5", "6")])
        own = not set(pool.processes) & set(pids)
        pool.close()
        os.write(writing, b"good" if own and verdicts == [1, 0] else b"bad")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 10) == b"good"
    os.close(reading)
    os.close(writing)
    assert pool.ask([comparison("5", "5.0")]) == [1]
    assert pool.processes == pids


def test_a_worker_that_cannot_start_is_an_error(worker):
    pool = worker("raise SystemExit(1)")
    with pytest.raises(MachineError, match=r"does not start; see what `.* -m worker_of_ours"):
        pool.ask([b"5"])
    assert pool.processes == []


def test_without_math_verify_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(MachineError, match=r"pip install 'tutelage\[verify\]'"):
        make_verifier(Math())


SCRAPS = st.sampled_from(
    ["\\boxed{", "}", "{", "\\frac", "$", "\\[", "Answer:", "1", "x", "^", "_", "\\", "\n", "("]
)


@settings(max_examples=60, deadline=None)
@given(
    st.text(max_size=60) | st.lists(SCRAPS | st.text(max_size=3), max_size=25).map("".join),
    st.text(max_size=20) | st.lists(SCRAPS, max_size=8).map("".join),
)
def test_any_text_is_right_wrong_or_unknown(maths, text, answer):
    last_box(text)
    assert maths(asked(answer), text) in (0.0, 1.0, None)


def test_a_batch_gives_what_its_parts_give(maths):
    rollouts = [
        Rollout(
            prompt=asked("5", f"p{i}"),
            index=0,
            prompt_ids=(1,),
            completion_ids=(1,),
            logprobs=(0.0,),
            finish_reason="stop",
            text=text,
            policy_step=0,
        )
        for i, text in enumerate(["", "5.0", "6", r"\boxed{10/2}", "none"])
    ]
    assert [r.reward for r in judge(rollouts, maths)] == [0, 1, 0, 1, 0]
    assert [r.reward for r in judge(rollouts, lambda p, t: maths(p, t))] == [0, 1, 0, 1, 0]


# --- a function of the user ------------------------------------------------------------------


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "grading_of_ours.py").write_text(
        "from datetime import datetime\n"
        "from decimal import Decimal\n"
        "from tutelage.types import Prompt\n"
        "def contains(prompt, text):\n"
        "    return prompt.answer in text if text else None\n"
        "def half(prompt, text, weight=0.5): return weight\n"
        "def fails(prompt, text): raise KeyError('mark')\n"
        "def too_much(prompt, text): return 2\n"
        "def words(prompt, text): return 'yes'\n"
        "def nan(prompt, text): return float('nan')\n"
        "def hangs(prompt, text):\n"
        "    while text == 'hang': pass\n"
        "    return text == prompt.answer\n"
        "def sleeps(prompt, text):\n"
        "    import time\n"
        "    return time.sleep(1000) if text == 'hang' else text == prompt.answer\n"
        "def dies(prompt, text):\n"
        "    import os, signal\n"
        "    if text == 'hang': os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    return text == prompt.answer\n"
        "def leaves(prompt, text): return exit(0) if text == 'hang' else text == prompt.answer\n"
        "def talks(prompt, text):\n"
        "    import os, sys\n"
        "    print('1'); os.write(1, b'1'); os.system('echo 1')\n"
        "    return sys.stdin.read() == '' and text == prompt.answer\n"
        "def reads(prompt, text): return prompt == Prompt(id='p', text='?', answer='4',\n"
        "    metadata={'when': datetime(2026, 11, 24), 'raw': b'x', 'share': Decimal('0.1')})\n"
        "def narrow(text): return 1\n"
        "number = 3\n"
    )
    (tmp_path / "broken_of_ours.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def verifier_at(path, **settings):
    function = {"type": "function", "path": path, **settings}
    return make_verifier(DataConfig(prompts="p", verifier=function).verifier)


@pytest.mark.parametrize("where", ["grading_of_ours", "{folder}/grading_of_ours.py"])
def test_a_users_function_judges(own, where):
    verify = verifier_at(f"{where.format(folder=own)}:contains")
    assert [verify(asked("4"), text) for text in ("4", "5", "")] == [1.0, 0.0, None]
    assert verifier_at(f"{where.format(folder=own)}:half")(asked("4"), "5") == 0.5


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("grading_of_ours", "write package.module:name"),
        ("grading_of_ours:", "write package.module:name"),
        ("grading_of_ours:absent", "has no function absent"),
        ("grading_of_ours:number", "has no function number"),
        ("grading_of_ours:narrow", r"cannot be called with \(prompt, text\)"),
        ("no_such_module:f", "install the package, put its folder on PYTHONPATH"),
        ("no/such/file.py:f", "there is no file"),
        ("broken_of_ours:f", "raises ZeroDivisionError"),
    ],
)
def test_a_users_function_that_cannot_be_had_is_known_at_the_start(own, path, expected):
    with pytest.raises(UsageError, match=expected):
        verifier_at(path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fails", "on prompt 'p' raises KeyError: 'mark'; return None .* completion was '5'"),
        ("too_much", "on prompt 'p' returns 2; 1 or True is right"),
        ("words", "returns 'yes'"),
        ("nan", "returns nan"),
    ],
)
def test_a_users_function_that_fails_says_where(own, name, expected):
    with pytest.raises(UsageError, match=expected):
        verifier_at(f"grading_of_ours:{name}")(asked("4"), "5")


@pytest.mark.parametrize("name", ["hangs", "sleeps", "dies", "leaves"])
def test_a_users_function_that_hangs_or_dies_is_unknown_and_costs_no_other_verdict(own, name):
    verify = verifier_at(f"grading_of_ours:{name}", deadline_s=0.2, workers=2)
    texts = ["4", "hang", *map(str, range(8))]
    for _ in range(2):
        verdicts = verify.many([(asked("4"), text) for text in texts])
        assert verdicts == [1, None, *(float(i == 4) for i in range(8))]
        assert len(verify.pool.processes) == 2


def test_what_a_users_function_prints_is_no_verdict_and_jobs_are_not_its_input(own, capfd):
    verify = verifier_at("grading_of_ours:talks", workers=1)
    assert verify.many([(asked("4"), text) for text in "456"]) == [1, 0, 0]
    verify.pool.close()
    out, err = capfd.readouterr()
    assert (out, err.count("1")) == ("", 9)


def test_a_users_function_gets_the_prompt_as_it_was_read(own):
    metadata = {"when": datetime(2026, 11, 24), "raw": b"x", "share": Decimal("0.1")}
    prompt = Prompt(id="p", text="?", answer="4", metadata=metadata)
    assert verifier_at("grading_of_ours:reads")(prompt, "") == 1


def test_the_first_completion_that_a_users_function_fails_on_is_named(own):
    verify = verifier_at("grading_of_ours:fails", workers=2)
    for _ in range(5):
        with pytest.raises(UsageError, match="on prompt 'p0'"):
            verify.many([(asked("4", f"p{i}"), str(i)) for i in range(10)])


def test_processes_of_a_users_function_are_replaced_after_a_change_of_folder(own, monkeypatch):
    monkeypatch.chdir(own)
    verify = verifier_at("./grading_of_ours.py:hangs", deadline_s=0.2, workers=1)
    (own / "elsewhere").mkdir()
    monkeypatch.chdir(own / "elsewhere")
    assert verify.many([(asked("4"), text) for text in ("hang", "4")]) == [None, 1]


def test_a_users_module_that_ends_its_process_is_an_error(own):
    (own / "leaving.py").write_text("import os; os._exit(1)")
    with pytest.raises(MachineError, match=r"data\.verifier\.path .* does not start"):
        verifier_at(f"{own}/leaving.py:f")


def test_the_process_of_a_users_function_is_light():
    code = (
        "import sys, tutelage.data.function_worker, tutelage.types;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'numpy', 'pydantic')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_users_function_may_do_without_answers(own):
    data = DataConfig(
        prompts="p", verifier={"type": "function", "path": "grading_of_ours:contains"}
    )
    assert choose_verifier(data, [asked(None)]) is not None
    with pytest.raises(DataError, match="needs an answer column"):
        choose_verifier(DataConfig(prompts="p", verifier="math"), [asked(None)])
