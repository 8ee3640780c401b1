"""Rules on what a run recorded: guards while it goes on, causes when it is explained.

A rule is a pure function of records written so far. It never sees a model.
"""

from tutelage.signals.guards import (
    Records,
    Signal,
    collapsed,
    drift,
    exhausted,
    length,
    non_finite,
    of_probes,
    retired,
    truncation,
)

__all__ = [
    "Records",
    "Signal",
    "collapsed",
    "drift",
    "exhausted",
    "length",
    "non_finite",
    "of_probes",
    "retired",
    "truncation",
]
