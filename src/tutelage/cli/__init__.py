"""The command line: one module a verb, each only reads arguments and calls the function."""

import signal
import sys
from importlib import import_module
from io import TextIOWrapper

from tutelage.errors import Preempted, Stop, TutelageError, UsageError, did_you_mean
from tutelage.runs.interrupts import Interrupts
from tutelage.secrets import redact_tracebacks, redacted
from tutelage.terminal import printable

VERBS = {
    "demo": "the main job on the embedded models, in minutes, without network",
    "init": "write a small config for your own two models, that the other verbs take",
    "check": "is this pair worth training? a verdict with reasons, before any training",
    "plan": "resolved settings, memory and tokens of a run; touches no weights",
    "preview": "the exact tokens that both sides read of the first prompts",
    "train": "distil a teacher into a student on the student's own samples",
    "eval": "accuracy of a model: avg@n and pass@k with intervals",
    "explain": "why did this run do what it did? causes with evidence and the setting to change",
    "align": "where each teacher pushes the student towards success, without training",
    "rescue": "recipes for a pair that would fail: cold start, prompts, controls",
    "export": "the same run for another engine: verl",
    "push": "upload a run's finished student to a hub",
    "presets": "the settings that `preset: NAME` starts from",
    "watch": "how a run goes, in the terminal, until it ends",
    "report": "one HTML page from one or more run directories",
    "doctor": "machine, versions, extras, and what the servers of a run can do",
    "lab": "published phenomena on tiny models, each with a verdict over seeds",
    "completion": "what bash, zsh or fish completes: verbs, flags, settings and their values",
}


def main(argv: list[str] | None = None) -> int:
    """Run a verb and return its exit code; errors a user can mend become one message."""
    redact_tracebacks()
    words = sys.argv[1:] if argv is None else argv
    if isinstance(sys.stdout, TextIOWrapper):  # what it cannot encode is no reason to fail
        sys.stdout.reconfigure(errors="backslashreplace")
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return 0 if words else 2
    if words[0] == "--version":
        from tutelage import __version__

        print(__version__)
        return 0
    verb = words[0]
    # Ctrl-C has Python's own exception; verbs with something to save listen to all of them.
    interrupts = Interrupts((signal.SIGTERM, signal.SIGUSR1))
    try:
        if verb not in VERBS:
            raise UsageError(f"there is no verb {verb!r}. {did_you_mean(verb, VERBS)}")
        with interrupts, interrupts.abandoning():
            return import_module(f"tutelage.cli.{verb}").run(words[1:]) or 0
    except Stop:
        print(f"tutelage: stopped by {interrupts.requested}", file=sys.stderr)
        return Preempted.exit_code
    except TutelageError as error:
        if not error.told:
            print(f"tutelage: {printable(redacted(str(error)))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("tutelage: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output closed it, as `head` does
        sys.stdout = None
        return 0


def overview() -> str:
    """The page of `tutelage --help`."""
    lines = [
        "tutelage: on-policy distillation that says whether a teacher will help",
        "",
        "usage: tutelage VERB [options]        tutelage VERB --help",
        "",
        *(f"  {verb:10} {summary}" for verb, summary in VERBS.items()),
    ]
    return "\n".join(lines)
