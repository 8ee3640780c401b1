"""On-policy distillation that says whether a teacher will help, and shows where.

Every verb of the command line is a function here; they are imported on first
use, so that `import tutelage` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tutelage.version import __version__

if TYPE_CHECKING:
    from tutelage.alignment.job import align
    from tutelage.cli.completing import completion
    from tutelage.config import Config, load_config, parse_config, presets
    from tutelage.demonstration import demo
    from tutelage.diagnose.checking import check
    from tutelage.diagnose.explaining import explain
    from tutelage.diagnose.machine import doctor
    from tutelage.evaluation import evaluate_model as eval
    from tutelage.exporting.verl import export_verl
    from tutelage.lab.pairing import lab_population
    from tutelage.lab.running import lab_suites
    from tutelage.planning import plan
    from tutelage.previewing import preview
    from tutelage.publishing import push
    from tutelage.replaying import replay
    from tutelage.reports.page import write_report as report
    from tutelage.rescue.cold_start import cold_start
    from tutelage.rescue.controls import controls
    from tutelage.rescue.prompts import rescue_prompts
    from tutelage.sizing.hosts import plan_hosts
    from tutelage.starting import init
    from tutelage.training import train
    from tutelage.watching.following import watch

_HOMES = {
    "Config": "tutelage.config:Config",
    "check": "tutelage.diagnose.checking:check",
    "align": "tutelage.alignment.job:align",
    "cold_start": "tutelage.rescue.cold_start:cold_start",
    "completion": "tutelage.cli.completing:completion",
    "controls": "tutelage.rescue.controls:controls",
    "lab_population": "tutelage.lab.pairing:lab_population",
    "lab_suites": "tutelage.lab.running:lab_suites",
    "load_config": "tutelage.config:load_config",
    "parse_config": "tutelage.config:parse_config",
    "demo": "tutelage.demonstration:demo",
    "doctor": "tutelage.diagnose.machine:doctor",
    "explain": "tutelage.diagnose.explaining:explain",
    "init": "tutelage.starting:init",
    "export_verl": "tutelage.exporting.verl:export_verl",
    "eval": "tutelage.evaluation:evaluate_model",
    "plan": "tutelage.planning:plan",
    "plan_hosts": "tutelage.sizing.hosts:plan_hosts",
    "preview": "tutelage.previewing:preview",
    "presets": "tutelage.config:presets",
    "push": "tutelage.publishing:push",
    "replay": "tutelage.replaying:replay",
    "report": "tutelage.reports.page:write_report",
    "rescue_prompts": "tutelage.rescue.prompts:rescue_prompts",
    "train": "tutelage.training:train",
    "watch": "tutelage.watching.following:watch",
}

__all__ = [
    "Config",
    "__version__",
    "align",
    "check",
    "cold_start",
    "completion",
    "controls",
    "demo",
    "doctor",
    "eval",
    "explain",
    "export_verl",
    "init",
    "lab_population",
    "lab_suites",
    "load_config",
    "parse_config",
    "plan",
    "plan_hosts",
    "presets",
    "preview",
    "push",
    "replay",
    "report",
    "rescue_prompts",
    "train",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tutelage' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(import_module(module), attribute)
