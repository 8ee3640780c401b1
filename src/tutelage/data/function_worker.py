"""One process that asks a function of the user: a pickled prompt and completion text."""

import importlib
import importlib.util
import inspect
import pickle  # nosec B403 # to and from our own processes
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import cast

from tutelage.data.worker import Judge, Refused, serve


def prepare() -> Judge:
    """Find the function that the second argument of the process names.

    Raises:
        Refused: there is none, its module cannot be imported, or it takes other arguments.
    """
    function = function_at(sys.argv[2])
    return lambda job: told(function, *pickle.loads(job))  # nosec B301 # from this process's parent


def function_at(path: str) -> Callable[[object, str], object]:
    """The function at `package.module:name` or `file.py:name`.

    Raises:
        Refused: as `prepare`.
    """
    where, _, name = path.rpartition(":")
    function = getattr(_module_of(where), name, None)
    if not callable(function):
        raise Refused(f": {where} has no function {name}")
    try:
        inspect.signature(function).bind(None, "")
    except TypeError as error:
        raise Refused(
            f" cannot be called with (prompt, text): {error}; it takes a tutelage Prompt "
            "and the text of a completion"
        ) from None
    except ValueError:  # a builtin that tells no signature
        pass
    return cast(Callable[[object, str], object], function)


def _module_of(where: str) -> ModuleType:
    try:
        if not where.endswith(".py"):
            return importlib.import_module(where)
        file = Path(where).expanduser()
        if not file.is_file():
            raise Refused(f": there is no file {where}")
        spec = importlib.util.spec_from_file_location(f"verifier_{file.stem}", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses and pickle look their module up
        spec.loader.exec_module(module)
    except Refused:
        raise
    except ModuleNotFoundError as error:
        raise Refused(
            f": {error}; install the package, put its folder on PYTHONPATH, or write file.py:name"
        ) from error
    except Exception as error:  # whatever the user's module does on import
        raise Refused(f": importing {where} raises {type(error).__name__}: {error}") from error
    return module


def told(function: Callable[[object, str], object], prompt: object, text: str) -> float | None:
    """The function's verdict.

    Raises:
        Refused: it raises, or gives what is no verdict.
    """
    try:
        verdict = function(prompt, text)
    except Exception as error:  # whatever the user's function does
        raise Refused(
            f"raises {type(error).__name__}: {error}; return None where it cannot be told"
        ) from error
    if verdict is None:
        return None
    if not isinstance(verdict, bool | int | float) or not 0 <= verdict <= 1:
        raise Refused(
            f"returns {verdict!r:.80}; 1 or True is right, 0 or False wrong, a number between "
            "them partly right, None unknown"
        )
    return float(verdict)


if __name__ == "__main__":
    serve(prepare)
