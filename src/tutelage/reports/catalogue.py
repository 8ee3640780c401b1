"""Which keys of metrics.jsonl make which figure, in which unit, and how to read it."""

from dataclasses import dataclass

from tutelage.reports.figures import Scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A figure of keys of metrics.jsonl against the step."""

    id: str
    """Its anchor and the name of its files."""
    title: str
    """What it shows."""
    unit: str
    """Title of the vertical axis."""
    note: str
    """How to read it."""
    keys: tuple[tuple[str, str], ...]
    """Key and what it is called in the legend."""
    scale: Scale = "plain"
    """Of the vertical axis."""
    train: bool = True
    """Whether single training steps are drawn beside the evaluations."""


GROUPS: dict[str, tuple[Spec, ...]] = {
    "Accuracy": (
        Spec(
            id="accuracy",
            title="Accuracy",
            unit="share of right answers",
            note="Held-out questions with 95 % intervals over questions, and, thin, the training "
            "prompts of each step. A dotted level is the teacher's own accuracy.",
            keys=(("accuracy", ""), ("rollout/accuracy", "training prompts")),
            scale="share",
        ),
        Spec(
            id="unformatted",
            title="No answer in the expected form",
            unit="share of held-out samples",
            note="Ended by themselves, yet without an answer where the verifier looks for one. "
            "They count as wrong; it is the form that has to be learnt.",
            keys=(("accuracy/unformatted", ""),),
            scale="share",
            train=False,
        ),
    ),
    "Loss and divergence": (
        Spec(
            id="loss",
            title="Loss",
            unit="nats per token",
            note="What the optimizer minimises. It may be an estimate of another quantity than the "
            "reverse KL: read both.",
            keys=(("loss", ""),),
        ),
        Spec(
            id="kl",
            title="Divergence from the teacher",
            unit="nats per token",
            note="On the student's own samples. Reverse is KL(student ‖ teacher), forward is "
            "KL(teacher ‖ student). Falls when training works.",
            keys=(("kl/reverse", "reverse"), ("kl/forward", "forward")),
        ),
        Spec(
            id="kl-sequence",
            title="Divergence over a whole answer",
            unit="nats per rollout",
            note="Reverse KL summed over the tokens of a rollout. Not fooled by answers that "
            "become shorter or longer.",
            keys=(("kl/reverse_sequence", ""),),
        ),
        Spec(
            id="update",
            title="How far a step moves the student",
            unit="KL(before ‖ after), nats per token",
            note="Above .05 the learning rate is likely too high; far below .0001 little happens.",
            keys=(("update/kl", ""),),
            scale="log",
        ),
        Spec(
            id="grad-norm",
            title="Gradient norm",
            unit="norm before clipping",
            note="Large at first and falling when a run succeeds; small from the start when the "
            "teacher has nothing to say.",
            keys=(("grad_norm", ""),),
            scale="log",
        ),
        Spec(
            id="support",
            title="What the objective's tokens hold",
            unit="probability",
            note="Mass of the objective's support under each side. Mass that leaks out is learnt "
            "from by the tail term alone.",
            keys=(("support/student_mass", "student"), ("support/teacher_mass", "teacher")),
            scale="share",
        ),
        Spec(
            id="tail",
            title="Loss outside of them",
            unit="nats per token",
            note="The tail's own part of the loss.",
            keys=(("support/tail_loss", ""),),
        ),
    ),
    "Agreement of the two sides": (
        Spec(
            id="overlap",
            title="Overlap ratio",
            unit="shared share of the k likeliest tokens",
            note="Of each side's k likeliest next tokens. Rises in runs that succeed; flat in runs "
            "that fail.",
            keys=(("overlap/ratio", ""),),
            scale="share",
        ),
        Spec(
            id="mass",
            title="Shared mass",
            unit="probability on the shared tokens",
            note="How much of what each side would do the other finds likely too. 97 to 99 % in "
            "runs that succeed.",
            keys=(("overlap/mass_student", "student"), ("overlap/mass_teacher", "teacher")),
            scale="share",
        ),
        Spec(
            id="overlap-advantage",
            title="Advantage on the shared tokens",
            unit="nats",
            note="Mean of p̄ (log q̄ − log p̄) on the shared tokens: 0 where both sides order them "
            "alike, and never positive.",
            keys=(("overlap/advantage", ""),),
        ),
        Spec(
            id="entropy-gap",
            title="Entropy gap",
            unit="mean |H(teacher) − H(student)|, nats",
            note="Whether both are sure at the same places. Falls when training works.",
            keys=(("entropy/gap", ""),),
        ),
        Spec(
            id="entropy",
            title="Entropy",
            unit="nats",
            note="How undecided each side is about the next token. A student far below its teacher "
            "has stopped exploring.",
            keys=(("entropy/student", "student"), ("entropy/teacher", "teacher")),
        ),
    ),
    "The answers": (
        Spec(
            id="length",
            title="Length",
            unit="tokens per rollout",
            note="A sudden change is the first sign of trouble with stopping.",
            keys=(("rollout/length", ""), ("teacher/length", "teacher")),
        ),
        Spec(
            id="truncated",
            title="Cut off",
            unit="share of rollouts",
            note="Rollouts that reached the token limit. Growing shares mean that the student "
            "forgets to stop, or that the limit is too low.",
            keys=(("rollout/truncated", ""),),
            scale="share",
        ),
        Spec(
            id="repetition",
            title="Repetition",
            unit="share of repeated 4-grams",
            note="1 − distinct / total. Above .1 and rising, the student loops.",
            keys=(("rollout/repetition", ""),),
        ),
        Spec(
            id="stopping",
            title="Stopping",
            unit="probability of a stop token at the end",
            note="At the last token of a rollout, under each side. Where they differ, the two "
            "sides end an answer by different tokens or at different places.",
            keys=(("rollout/eos_mass_student", "student"), ("rollout/eos_mass_teacher", "teacher")),
            scale="share",
        ),
    ),
    "Rewards of tokens and answers": (
        Spec(
            id="reward",
            title="Token reward and its tails",
            unit="log q − log p, nats",
            note="Teacher's minus student's log-probability of a sampled token: mean, first and "
            "last percentile. Long tails make single tokens steer a sampled objective.",
            keys=(("reward/mean", "mean"), ("reward/p01", "1 %"), ("reward/p99", "99 %")),
        ),
        Spec(
            id="reward-share",
            title="Weight of the largest rewards",
            unit="share of the sum of sizes",
            note="What the largest 1 % of token rewards hold of all.",
            keys=(("reward/top1pct_share", ""),),
            scale="share",
        ),
        Spec(
            id="auroc",
            title="Do right answers score higher?",
            unit="AUROC",
            note="Chance that the teacher scores a right rollout above a wrong one. Near .5 it "
            "knows nothing that would tell them apart.",
            keys=(("sequence_reward/auroc", ""),),
            scale="share",
        ),
    ),
    "Context of a self-teacher": (
        Spec(
            id="contrast",
            title="Style or content",
            unit="ratio of divergences",
            note="Divergence from the teacher that reads another question's context, over that "
            "from the right one. Near 1, any context would pull alike.",
            keys=(("contrast/style_share", ""),),
        ),
        Spec(
            id="context-kl",
            title="What only the context tells",
            unit="nats per token",
            note="KL between the teacher with the right and with a wrong context.",
            keys=(("contrast/context", ""),),
        ),
    ),
    "Speed and memory": (
        Spec(
            id="throughput",
            title="Throughput",
            unit="tokens per second",
            note="By phase, of each training step.",
            keys=(
                ("perf/rollout_tokens_per_s", "rollout"),
                ("perf/score_tokens_per_s", "score"),
                ("perf/update_tokens_per_s", "update"),
            ),
        ),
        Spec(
            id="step-time",
            title="Time of a step",
            unit="seconds",
            note="From sampling to the optimizer.",
            keys=(("perf/step_s", ""),),
        ),
        Spec(
            id="memory",
            title="Peak memory",
            unit="bytes",
            note="Most so far, of this process and of its GPU.",
            keys=(("perf/peak_memory_bytes", "process"), ("perf/peak_gpu_memory_bytes", "GPU")),
        ),
    ),
}
