"""One Ray instance for all tests, on loopback, with room for four processors' worth of workers."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def ray_here():
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        import ray

        from tutelage.runs.interrupts import held_signals

        with held_signals():
            ray.init(
                num_cpus=4,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                object_store_memory=2**27,
                _system_config={"worker_niceness": 0},
            )
    yield ray
    with held_signals():
        ray.shutdown()
