"""Strategies from a Python file of the user's: `--strategy ./mine.py` or `./mine.py:function`.

The file holds a generator function as the library's files do: under the decorator `strategy`, or plain, when its
parameters are read from its signature alone. What it defines is known to the run that named it, never to the library.
"""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from textwrap import shorten
from types import ModuleType
from typing import Any

from simulator.errors import UserError, unknown_name
from simulator.strategies.registry import COMMON, KINDS, Note, Parameter, Strategy, read_parameter, strategies_of
from simulator.workload.lengths import Lengths
from simulator.workload.seconds import Seconds

SUFFIX = ".py"
EXPECTED = "expected a Python file as FILE.py or FILE.py:FUNCTION"
SHAPE = "def mine(run, samples=8)"
CONCLUDING = "_conclude"  # where a run checks what a strategy returned
LONGEST_CAUSE = 500  # characters of somebody else's error message


def is_file_name(name: str) -> bool:
    """Whether `name` means a file, not a strategy of the library."""
    return SUFFIX in name.lower() or "/" in name or os.sep in name


def load_strategy(name: str) -> Strategy:
    """The strategy that "FILE.py" or "FILE.py:FUNCTION" names. `UserError` in one sentence when there is none.

    A file is executed once as long as it does not change.
    """
    path, function = _split(name.strip())
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise UserError(f"strategy file '{path}' {what}; {EXPECTED}")
    try:
        written = path.stat()
        module = _load(path.resolve(), str(path), written.st_mtime_ns, written.st_size)
    except OSError as error:
        raise UserError(f"strategy file '{path}' cannot be read: {error.strerror}") from error
    found = _named(module, path, function) if function else _only(module, path)
    return replace(found, assumptions=(*found.assumptions, f"the strategy is the one of {path}, not of the library"))


def _split(name: str) -> tuple[Path, str]:
    """File and function ("" for none) of "FILE.py:FUNCTION"."""
    path, colon, function = name.rpartition(":")
    if colon and path.lower().endswith(SUFFIX) and not Path(name).exists():
        if not function.isidentifier():
            raise UserError(f"strategy '{name}': '{function}' is not the name of a function; {EXPECTED}")
        return Path(path), function
    if not name.lower().endswith(SUFFIX):
        raise UserError(f"strategy '{name}' is not a Python file; {EXPECTED}")
    return Path(name), ""


@lru_cache
def _load(path: Path, shown: str, *_: int) -> ModuleType:
    """Execute the file; what goes wrong there is told with its line, as one sentence."""
    module = ModuleType(f"strategy file {path}")
    module.__file__ = str(path)
    source = path.read_bytes()
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        with _neighbours(str(path.parent)):
            exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit() included: whatever it is, the file cannot be used
        sys.modules.pop(module.__name__, None)
        raise UserError(f"strategy file '{shown}'{_line(error, str(path))}: {_cause(error)}") from error
    return module


@contextmanager
def mistakes_told(name: str | None) -> Generator[None, None, None]:
    """While the strategy called `name` flies: what goes wrong in a user's file is told with its line, as one sentence.

    Errors of our own keep their traceback: they have no line in that file.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if name is None or not is_file_name(name):
            raise
        path, _ = _split(name.strip())
        line = _line(error, str(path.resolve()))
        at_its_end = traceback.extract_tb(error.__traceback__)[-1].name == CONCLUDING
        if not line and not at_its_end:
            raise
        raise UserError(f"strategy file '{path}'{line}: {_cause(error)}") from error


@contextmanager
def _neighbours(folder: str) -> Generator[None, None, None]:
    """Let a file import those beside it, after everything that is installed."""
    sys.path.append(folder)
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(folder)


def _line(error: BaseException, path: str) -> str:
    """', line 7': where in the file it happened."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    if isinstance(error, SyntaxError) and error.filename == path:
        lines.append(error.lineno)
    return f", line {lines[-1]}" if lines and lines[-1] else ""


def _cause(error: BaseException) -> str:
    """What was raised, as the last line of a traceback has it."""
    if isinstance(error, UserError):
        return str(error)
    try:
        text = error.msg if isinstance(error, SyntaxError) else str(error)
    except Exception:  # somebody else's class, which may do anything
        text = ""
    return type(error).__name__ + (f": {shorten(text, LONGEST_CAUSE)}" if text else "")


def _only(module: ModuleType, path: Path) -> Strategy:
    """The one strategy of a file: under the decorator, or else its one plain generator function."""
    found = {s.name: s for s in strategies_of(module)}
    plain = {} if found else {f.__name__: f for f in _generators(module)}
    names = [*found, *plain]
    if not names:
        raise UserError(f"strategy file '{path}' has no strategy: expected a generator function, as {SHAPE}")
    if len(names) > 1:
        raise UserError(
            f"strategy file '{path}' has {len(names)} strategies ({', '.join(names)}): name one, as {path}:{names[0]}, "
            "or let the names of the others begin with an underscore"
        )
    return found[names[0]] if found else _plain_strategy(plain[names[0]], names[0], path)


def _named(module: ModuleType, path: Path, name: str) -> Strategy:
    """The function that was asked for, decorated or not."""
    if name not in vars(module):
        known = dict.fromkeys([*(s.name for s in strategies_of(module)), *(f.__name__ for f in _generators(module))])
        raise unknown_name("function", name, known, f"it has {', '.join(known) or 'no strategy'}", f"'{path}'")
    function = vars(module)[name]
    found = getattr(function, "strategy", None) if inspect.isfunction(function) else None
    return found if isinstance(found, Strategy) else _plain_strategy(function, name, path)


def _generators(module: ModuleType) -> list[Callable[..., Generator]]:
    """The generator functions that a file defines for others: those that are not private."""
    return [
        value
        for name, value in vars(module).items()
        if inspect.isgeneratorfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    ]


def _plain_strategy(function: Any, name: str, path: Path) -> Strategy:
    """A strategy of a function without the decorator: parameters from its signature, title from its name."""
    where = f"strategy file '{path}', '{name}'"
    if not inspect.isgeneratorfunction(function):
        raise UserError(f"{where} is not a generator function: a strategy has to yield its calls, as {SHAPE}")
    signature = list(inspect.signature(function).parameters.values())
    if not signature or signature[0].kind not in (signature[0].POSITIONAL_ONLY, signature[0].POSITIONAL_OR_KEYWORD):
        raise UserError(f"{where} takes no run: expected it as the first argument, as {SHAPE}")
    parameters = tuple(_parameter(p, where, path) for p in signature[1:])
    description = inspect.cleandoc(function.__doc__ or "")
    title = name.strip("_").replace("_", " ")
    return Strategy(name, title, path.name, description, COMMON + parameters, (), (), function)


def _parameter(parameter: inspect.Parameter, where: str, path: Path) -> Parameter:
    """One parameter of a plain function; a number may be 0, or as low as its default."""
    what, default = f"{where}, parameter '{parameter.name}'", parameter.default
    if parameter.name in {p.name for p in COMMON}:
        raise UserError(f"{what}: every strategy has it, so that the function cannot take it (see run.problem)")
    if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
        raise UserError(f"{what} cannot be given by name, as every parameter of a strategy is")
    if default is parameter.empty:
        raise UserError(f"{what} has no default, and every parameter of a strategy has one")
    if parameter.annotation is parameter.empty:
        kind = next((kind.__name__ for kind in (Lengths, Seconds) if isinstance(default, kind)), type(default).__name__)
        parameter = parameter.replace(annotation=kind)
    least = min(0, default) if isinstance(default, (int, float)) else None
    note = Note(parameter.name.replace("_", " "), f"the default of {path.name}", False, least)
    try:
        return read_parameter(parameter, note, where)
    except TypeError:
        found = getattr(parameter.annotation, "__name__", parameter.annotation)
        raise UserError(f"{what} is of type {found}, expected one of {', '.join(KINDS)}") from None
