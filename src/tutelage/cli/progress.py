"""Progress on stderr: a live bar on a terminal, plain lines elsewhere."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tutelage.metrics import Record


class Display:
    """An observer of a run that draws what it is told."""

    def __init__(self, steps: int) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("training", total=steps, note="")

    def __enter__(self) -> "Display":
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def __call__(self, record: Record) -> None:
        """Show one record."""
        match record["kind"]:
            case "train":
                note = f"reverse KL {record.get('kl/reverse', float('nan')):.3f}"
                self.bar.update(self.task, completed=int(record["step"]), note=note)
            case "eval":
                self.say(_evaluation_line(record))
            case "signal":
                self.say(
                    f"step {record['step']}, {record['name']}: {record['evidence']}. "
                    f"{record['advice']}."
                )
            case "note":
                self.say(f"note: {record['text']}.")
            case "look":
                self.say(look_line(record))
            case "answers":
                self.say(
                    f"{record['kept']} of {record['slots']} answers kept, {record['tries']} drawn."
                )
            case "validation":
                self.say(f"step {record['step']:>4}  validation loss {record['loss']:.4f}")
            case _:
                pass

    def on_lab_step(self, name: str, step: int, loss: float) -> None:
        """One more step of a lab model's training."""
        self.bar.update(self.task, advance=1, description=name, note=f"loss {loss:.3f}")

    def say(self, line: str) -> None:
        """One line; model text and paths are never read as markup."""
        self.console.print(line, markup=False)


def say(line: str) -> None:
    """One line on stderr; model text and paths are never read as markup."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(line, markup=False)


def look_line(record: Record) -> str:
    """What a check found of one teacher."""
    return f"{record['teacher']}: {record['verdict']}. {record['reason']}."


def _evaluation_line(record: Record) -> str:
    parts = [f"step {record['step']:>4}"]
    if "accuracy" in record:
        parts.append(
            f"accuracy {record['accuracy']:.3f} "
            f"[{record['accuracy/low']:.3f}, {record['accuracy/high']:.3f}]"
        )
    parts += [
        f"{label} {record[key]:.3f}"
        for key, label in (
            ("kl/reverse", "reverse KL"),
            ("overlap/mass_student", "shared mass"),
            ("entropy/gap", "entropy gap"),
        )
        if key in record
    ]
    if "rollout/length" in record:
        parts.append(f"length {record['rollout/length']:.1f}")
    return "  ".join(parts)
