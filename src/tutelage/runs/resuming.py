"""Going on in a directory with the settings it began with."""

from pathlib import Path

from tutelage.config import Config, load_config
from tutelage.errors import UsageError
from tutelage.models.checkpoints import keep_pinned
from tutelage.runs.directory import Run, open_run


def reopen(output: str | Path, config: Config) -> tuple[Run, Config]:
    """The directory that a verb is to go on in, and its settings with what they recorded.

    Where the work runs may differ: its results do not depend on it.

    Raises:
        UsageError: there is none, or it began with other settings.
    """
    run = open_run(output)
    saved = load_config(run.path / "config.yaml")
    config = keep_pinned(config, saved)
    if saved.model_copy(update={"engine": config.engine}) != config:
        raise UsageError(
            f"--resume continues with the settings in {run.path / 'config.yaml'}, and these "
            "differ; leave them as they were, or choose another --output"
        )
    return run, config
