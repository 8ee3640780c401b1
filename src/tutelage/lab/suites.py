"""The phenomena, one suite each: claim, threshold, the published figure, arms and judgement.

Thresholds were written down before the runs whose verdicts docs/lab.md gives, and do not
depend on them. Accuracies are of one sample at temperature 1 on held-out problems.
"""

from types import MappingProxyType
from typing import Any

from tutelage.lab.arms import ColdStarted, Continue, Distil, Greedy, Imitate
from tutelage.lab.inner_suites import INNER_SUITES
from tutelage.lab.kept import DIALLED
from tutelage.lab.suite import COMPATIBLE, INCOMPATIBLE, Suite, before_and_after, ends
from tutelage.lab.verdicts import Part, Quantity, Seed, distance, minus

SAME_DATA = Distil(student="student", teacher="same_data")
IMITATION = 250
DEPTHS = (0.0, 0.25, 0.5, 0.75)


def _advantage(cut: int) -> Quantity:
    return lambda seed: seed.advantage("cut", cut)


def _objective(name: str, **changes: Any) -> Distil:
    """The compatible pair under another objective."""
    return Distil(
        student="student",
        teacher="compatible",
        settings=MappingProxyType({"objective": {"type": name, **changes}}),
    )


def _support(support: str, *, normalise: bool | None = None) -> Distil:
    """Eight tokens of a support, weighed as the paper's code does."""
    tail = {"type": "reference_code", "normalise": normalise}
    return _objective("top_k", k=8, support=support, tail=tail)


def _likeliest(k: int) -> Distil:
    """The student's `k` likeliest tokens, weighed as the paper's code does."""
    return _objective("top_k", k=k, tail={"type": "reference_code"})


def _template(name: str) -> Distil:
    both = {"template": {"template": name}}
    return Distil(student="student", teacher="gated", settings={"student": both, "teacher": both})


def _left_at_the_last_cut(seed: Seed, arm: str, share: float) -> float | None:
    """The advantage at the last cut, minus this share of that at the first."""
    first, last = seed.advantage(arm, 1), seed.advantage(arm, len(DEPTHS) - 1)
    return None if first is None or last is None else last - share * first


SUITES: dict[str, Suite] = {
    "compatible": Suite(
        claim="A post-trained teacher of the student's own pattern teaches it.",
        mirrors="2604.13016, figure 6: R1-1.5B from JustRL-1.5B, over 80 % of the gap recovered",
        arms={"compatible": COMPATIBLE},
        parts=(
            Part(
                says="gain in accuracy",
                of=lambda s: s.gain("compatible"),
                above=0.10,
            ),
        ),
        shown={
            "student before": lambda s: s.start("compatible"),
            "student after": lambda s: s.end("compatible"),
            "teacher": lambda s: s.start("compatible", "teacher/accuracy"),
            "gap recovered": lambda s: s.recovery("compatible"),
        },
    ),
    "incompatible": Suite(
        claim="A teacher of another pattern with as high a score does not teach.",
        mirrors="2604.13016, figure 2: Qwen3-1.7B-Base from Qwen3-4B or from Qwen3-4B-Base-GRPO, "
        "similar scores; the one with the lower initial overlap stays behind throughout",
        arms={"compatible": COMPATIBLE, "incompatible": INCOMPATIBLE},
        parts=(
            Part(
                says="the incompatible teacher's accuracy minus the compatible one's",
                of=lambda s: minus(
                    s.start("incompatible", "teacher/accuracy"),
                    s.start("compatible", "teacher/accuracy"),
                ),
                above=-0.10,
            ),
            Part(
                says="gain from the incompatible teacher",
                of=lambda s: s.gain("incompatible"),
                below=0.05,
            ),
            Part(
                says="gain from the compatible teacher minus that from the incompatible one",
                of=lambda s: minus(s.gain("compatible"), s.gain("incompatible")),
                above=0.10,
            ),
        ),
        shown={
            **ends("compatible", "incompatible"),
            "compatible teacher": lambda s: s.start("compatible", "teacher/accuracy"),
            "incompatible teacher": lambda s: s.start("incompatible", "teacher/accuracy"),
        },
        caution="In the paper the student stagnates; here it may collapse.",
    ),
    "dynamics": Suite(
        claim="When training works, the shared mass rises and the entropy gap falls; when it "
        "fails, the mass stays behind.",
        mirrors="2604.13016, figure 6: overlap 72 % to 91 %, shared mass 97 to 99 %, advantage to "
        "0, entropy gap down; flat where it fails",
        arms={"compatible": COMPATIBLE, "incompatible": INCOMPATIBLE},
        parts=(
            Part(
                says="rise of the student's mass on shared tokens, success",
                of=lambda s: s.gain("compatible", "overlap/mass_student"),
                above=0.0,
            ),
            Part(
                says="rise of the entropy gap, success",
                of=lambda s: s.gain("compatible", "entropy/gap"),
                below=0.0,
            ),
            Part(
                says="rise of the overlap advantage, success",
                of=lambda s: s.gain("compatible", "overlap/advantage"),
                above=0.0,
            ),
            Part(
                says="mass at the end, success minus failure",
                of=lambda s: minus(
                    s.end("compatible", "overlap/mass_student"),
                    s.end("incompatible", "overlap/mass_student"),
                ),
                above=0.05,
            ),
        ),
        shown=before_and_after("overlap/mass_student", "compatible", "incompatible"),
        unit="student's mass on shared tokens",
        draws=("overlap/mass_student", "overlap/advantage", "entropy/gap", "accuracy"),
        caution="Top sets of an eighth of a tiny vocabulary, so the overlap ratio itself says "
        "little. `tutelage report` of the runs has every metric by step and by position.",
    ),
    "same_data": Suite(
        claim="A larger teacher of the student's data with a really higher score teaches less "
        "than a post-trained one.",
        mirrors="2604.13016, figure 4: gap recovery 5.3 % against 16.9 % (R1-1.5B from R1-7B or "
        "Skywork-OR1-Math-7B), 15.6 % against 58.6 % (Qwen3-1.7B)",
        arms={
            "same data": SAME_DATA,
            "compatible": COMPATIBLE,
            "student, greedy": Greedy(model="student"),
            "same data, greedy": Greedy(model="same_data"),
        },
        parts=(
            Part(
                says="greedy accuracy of the larger teacher minus the student's",
                of=lambda s: minus(s.accuracy("same data, greedy"), s.accuracy("student, greedy")),
                above=0.05,
            ),
            Part(
                says="gain from the post-trained teacher minus that from the larger one",
                of=lambda s: minus(s.gain("compatible"), s.gain("same data")),
                above=0.10,
            ),
        ),
        shown={
            **ends("same data", "compatible"),
            "student, greedy": lambda s: s.accuracy("student, greedy"),
            "larger teacher, greedy": lambda s: s.accuracy("same data, greedy"),
        },
        caution="On the running total the larger teacher's score is hardly higher: `--task mod`.",
    ),
    "auroc": Suite(
        claim="The mean log-ratio of an answer tells right from wrong, whether the teacher can "
        "teach the student or not.",
        mirrors="2604.13016, figure 14: AUROC 0.73 (JustRL, which teaches) and 0.75 (R1-7B, which "
        "does not)",
        arms={"compatible": COMPATIBLE, "incompatible": INCOMPATIBLE, "same data": SAME_DATA},
        parts=(
            Part(
                says="AUROC before training, compatible teacher",
                of=lambda s: s.start("compatible", "sequence_reward/auroc"),
                above=0.60,
            ),
            Part(
                says="AUROC before training, larger teacher of the same data",
                of=lambda s: s.start("same data", "sequence_reward/auroc"),
                above=0.60,
            ),
        ),
        shown={
            "compatible": lambda s: s.start("compatible", "sequence_reward/auroc"),
            "same data": lambda s: s.start("same data", "sequence_reward/auroc"),
            "incompatible": lambda s: s.start("incompatible", "sequence_reward/auroc"),
        },
        unit="AUROC of the mean log-ratio for correctness, before training",
        caution="The teacher that fails is the larger one of the same data, as in the paper.",
    ),
    "continuation": Suite(
        claim="The later a teacher takes over the student's answer, the less it gains.",
        mirrors="2604.13016, figure 11b: +.366, +.271, +.152, +.024 when it takes over after 1, 4, "
        "8, 16 thousand tokens",
        arms={"cut": Continue(student="student", teacher="compatible", depths=DEPTHS)},
        parts=(
            Part(
                says="teacher minus student, from a quarter of the answer on",
                of=lambda s: s.advantage("cut", 1),
                above=0.10,
            ),
            Part(
                says="the same from three quarters on, minus half of that",
                of=lambda s: _left_at_the_last_cut(s, "cut", 0.5),
                below=0.0,
            ),
        ),
        shown={
            f"from {depth:.0%} of the answer on": _advantage(i) for i, depth in enumerate(DEPTHS)
        },
        unit="accuracy of the continuations, teacher minus student",
        caution="By construction in part: no later token can undo a wrong total. The paper takes "
        "long answers alone; here all are taken, right ones too.",
    ),
    "reverse": Suite(
        claim="Distilled back, a post-trained student falls to its weak teacher's score, whichever "
        "size of teacher.",
        mirrors="2604.13016, figure 5: JustRL-1.5B from R1-1.5B and from R1-7B falls to its score "
        "before RL, on curves that are nearly identical",
        arms={
            "from the student": Distil(student="compatible", teacher="student"),
            "from same data": Distil(student="compatible", teacher="same_data"),
        },
        parts=(
            Part(
                says="fall in accuracy, taught by the former student",
                of=lambda s: minus(s.start("from the student"), s.end("from the student")),
                above=0.30,
            ),
            Part(
                says="distance of its end from its teacher's accuracy",
                of=lambda s: distance(
                    s.end("from the student"), s.start("from the student", "teacher/accuracy")
                ),
                below=0.10,
            ),
            Part(
                says="distance between the ends under the two weak teachers",
                of=lambda s: distance(s.end("from the student"), s.end("from same data")),
                below=0.10,
            ),
        ),
        shown={
            "before": lambda s: s.start("from the student"),
            "after, from the former student": lambda s: s.end("from the student"),
            "after, from the larger one": lambda s: s.end("from same data"),
            "the former student": lambda s: s.start("from the student", "teacher/accuracy"),
            "the larger one": lambda s: s.start("from same data", "teacher/accuracy"),
        },
    ),
    "dial": Suite(
        claim="Knowing the teacher's pattern, without being better at it, is what lets it teach.",
        mirrors="2604.13016, figures 2 and 3: with similar scores, the teacher of higher initial "
        "overlap wins (no dial there)",
        arms={
            f"{share} %": Distil(student=f"dial_{share}", teacher="incompatible")
            for share in DIALLED
        },
        parts=(
            Part(
                says="accuracy before, 10 % of the pattern minus none",
                of=lambda s: minus(s.start("10 %"), s.start("0 %")),
                below=0.05,
            ),
            Part(
                says="accuracy after, 10 % of the pattern minus none",
                of=lambda s: minus(s.end("10 %"), s.end("0 %")),
                above=0.10,
            ),
        ),
        shown=before_and_after("accuracy", *(f"{share} %" for share in DIALLED)),
    ),
    "overlap": Suite(
        claim="Training on shared tokens alone does about as well as on all, and far better than "
        "on the others, normalised or not.",
        mirrors="2604.13016, figure 7: Overlap as good as Student, both overlaps 72 % to over "
        "91 %, Non-Overlap behind; there the weights of Non-Overlap are the raw mass",
        arms={
            "all": _support("student"),
            "overlap": _support("intersection"),
            "non-overlap": _support("symmetric_difference"),
            "non-overlap, normalised": _support("symmetric_difference", normalise=True),
        },
        parts=(
            Part(
                says="all minus overlap alone",
                of=lambda s: minus(s.end("all"), s.end("overlap")),
                below=0.10,
            ),
            Part(
                says="overlap minus non-overlap",
                of=lambda s: minus(s.end("overlap"), s.end("non-overlap")),
                above=0.10,
            ),
            Part(
                says="overlap minus non-overlap with normalised weights",
                of=lambda s: minus(s.end("overlap"), s.end("non-overlap, normalised")),
                above=0.10,
            ),
        ),
        shown=ends("all", "overlap", "non-overlap", "non-overlap, normalised"),
        caution="Top 8 of a vocabulary of 32 (running total) or 45 (mod 31).",
    ),
    "support": Suite(
        claim="Only k = 1 is clearly worse; four tokens, sixteen and the sampled one do alike.",
        mirrors="2604.13016, figures 15 and 16: AIME24 .454 for the sampled token, .446, .473, "
        ".458, .463 for k = 1, 4, 16, 64",
        arms={
            "sampled": _objective("sampled"),
            "k = 1": _likeliest(1),
            "k = 4": _likeliest(4),
            "k = 16": _likeliest(16),
        },
        parts=(
            Part(
                says="k = 16 minus k = 1",
                of=lambda s: minus(s.end("k = 16"), s.end("k = 1")),
                above=0.05,
            ),
            Part(
                says="k = 16 minus k = 4",
                of=lambda s: minus(s.end("k = 16"), s.end("k = 4")),
                below=0.10,
            ),
            Part(
                says="k = 16 minus the sampled token",
                of=lambda s: minus(s.end("k = 16"), s.end("sampled")),
                below=0.10,
            ),
        ),
        shown=ends("sampled", "k = 1", "k = 4", "k = 16"),
        caution="One learning rate for all arms; the sampled token's gradient is the noisiest.",
    ),
    "cold_start": Suite(
        claim="After imitating its answers, the student learns from the incompatible teacher.",
        mirrors="2604.13016, figures 8 and 21: Qwen3-1.7B from Qwen3-4B; after SFT on 200 thousand "
        "of its answers higher overlap at the start, smoother and higher",
        arms={
            "without": INCOMPATIBLE,
            "with": ColdStarted(student="student", teacher="incompatible", imitation=IMITATION),
            "imitation": Imitate(student="student", teacher="incompatible", imitation=IMITATION),
            "more imitation": Imitate(
                student="student", teacher="incompatible", imitation=IMITATION + 100
            ),
        },
        parts=(
            Part(
                says="end with a cold start minus end without",
                of=lambda s: minus(s.end("with"), s.end("without")),
                above=0.10,
            ),
            Part(
                says="shared mass before distillation, with a cold start minus without",
                of=lambda s: minus(
                    s.start("with", "overlap/mass_student"),
                    s.start("without", "overlap/mass_student"),
                ),
                above=0.05,
            ),
        ),
        shown={
            **ends("without", "with"),
            "after imitation alone": lambda s: s.accuracy("imitation"),
            "after 100 steps more of it": lambda s: s.accuracy("more imitation"),
        },
        caution="What distillation adds is to be read beside as many further steps of imitation.",
    ),
    "template": Suite(
        claim="Prompts in the template of the teacher's post-training teach more.",
        mirrors="2604.13016, figure 9: recovery about 80 % under the DAPO template, about 85 % "
        "under the teacher's",
        arms={"X": _template("X"), "Y": _template("Y")},
        parts=(
            Part(
                says="gain under the teacher's template minus gain under the other",
                of=lambda s: minus(s.gain("X"), s.gain("Y")),
                above=0.10,
            ),
        ),
        shown={
            "X, the teacher's, before": lambda s: s.start("X"),
            "X, the teacher's, after": lambda s: s.end("X"),
            "Y before": lambda s: s.start("Y"),
            "Y after": lambda s: s.end("Y"),
        },
        caution="The teacher is able under X alone; post-training on X without such a gate "
        "transfers to Y wholly, and shows nothing. Each arm is judged under its own template.",
    ),
    **INNER_SUITES,
}
"""In the order of `tutelage lab all`; arms that suites share are run once."""
