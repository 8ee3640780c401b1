"""Real counterparts, from an environment of their own: `make test-interop`."""

import pytest


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "interop":
            item.add_marker(pytest.mark.interop)
            item.add_marker(pytest.mark.timeout(600))
            item.add_marker(pytest.mark.filterwarnings("default"))  # theirs are not ours to mend
