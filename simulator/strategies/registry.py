"""The library of strategies: what each is called, what it takes, and where its defaults come from.

A strategy is one file in this folder with one generator function under the decorator `strategy`. Its parameters
and defaults are those of the function's signature; the decorator adds what a signature cannot say.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

from simulator.errors import UserError, unknown_name
from simulator.workload.lengths import MAX_TOK, Lengths, parse_lengths

TYPES = ("int", "Lengths")  # what a parameter may be annotated with


@dataclass(frozen=True)
class Note:
    """What a signature cannot say about a parameter: one line of help and the origin of its default."""

    help: str
    origin: str
    published: bool


MAX_CALLS = 4096  # most rounds, samples or drafts: beyond it a simulation takes minutes and no paper goes


def published(help_text: str, origin: str) -> Note:
    """A parameter whose default stands in the paper; `origin` says where."""
    return Note(help_text, origin, True)


def assumed(help_text: str, reason: str) -> Note:
    """A parameter whose default is our assumption; `reason` says why this value."""
    return Note(help_text, reason, False)


@dataclass(frozen=True)
class Parameter:
    """One parameter of a strategy. `kind` is "int" (whole number >= 1) or "Lengths" (see `parse_lengths`)."""

    name: str
    kind: str
    default: int | str
    help: str
    published: bool
    origin: str

    def parse(self, value: Any, where: str) -> int | Lengths:
        """`value` (text from a command line, number, or distribution) as this parameter's type, or `UserError`."""
        if self.kind == "Lengths":
            try:
                return parse_lengths(value)
            except UserError as error:
                raise UserError(f"{where}, parameter '{self.name}': {error}") from error
        try:
            whole = int(value)
            most = MAX_TOK if self.name.endswith("_tok") else MAX_CALLS
            valid = not isinstance(value, bool) and 1 <= whole <= most and (isinstance(value, str) or whole == value)
        except (TypeError, ValueError, OverflowError):
            valid = False
        if not valid:
            raise UserError(
                f"{where}, parameter '{self.name}': found '{value}', expected a whole number >= 1"
                + ("" if self.name.endswith("_tok") else f", at most {MAX_CALLS:,}")
            )
        return whole


# Every strategy has these; they are read before the generator starts and are not passed to it.
COMMON = (
    Parameter(
        "problem_tok",
        "Lengths",
        256,
        "tokens of the problem, the prompt that all calls share",
        False,
        "competition problems with a chat template have 100 to 400 tokens",
    ),
)


@dataclass(frozen=True)
class Strategy:
    """A strategy of the library. `description` is the docstring's text; `source` names the paper."""

    name: str
    title: str
    source: str
    description: str
    parameters: tuple[Parameter, ...]
    assumptions: tuple[str, ...]
    aliases: tuple[str, ...]
    function: Callable[..., Generator]

    def resolve(self, given: Mapping[str, Any] | None = None) -> dict[str, int | Lengths]:
        """All parameters by name, `given` ones checked and converted, the rest at their defaults.

        Hyphens stand for underscores. Raises `UserError` for an unknown name or a bad value.
        """
        where = f"strategy '{self.name}'"
        names = [parameter.name for parameter in self.parameters]
        found = {}
        for raw, value in (given or {}).items():
            name = raw.replace("-", "_")
            if name not in names:
                raise unknown_name(f"parameter of {where}", raw, names, f"it takes {', '.join(names)}")
            if name in found:
                raise UserError(f"{where}: parameter '{name}' is given twice")
            found[name] = value
        return {p.name: p.parse(found.get(p.name, p.default), where) for p in self.parameters}

    def plain(self, given: Mapping[str, Any] | None = None) -> dict[str, int | str]:
        """`resolve(given)` as plain JSON types: whole numbers, and distributions by their text."""
        return {name: _plain(value) for name, value in self.resolve(given).items()}

    def start(self, run: Any, values: Mapping[str, int | Lengths]) -> Generator:
        """The strategy's generator on `run`; `values` as returned by `resolve`."""
        common = {parameter.name for parameter in COMMON}
        return self.function(run, **{name: value for name, value in values.items() if name not in common})


def _plain(value: int | Lengths) -> int | str:
    text = str(value)
    return int(text) if text.isdigit() else text


_REGISTERED: dict[str, Strategy] = {}


def strategy(
    title: str,
    source: str,
    parameters: Mapping[str, Note],
    assumptions: tuple[str, ...] = (),
    aliases: tuple[str, ...] = (),
) -> Callable[[Callable[..., Generator]], Callable[..., Generator]]:
    """Decorator that enters a generator function into the library under its own name.

    `parameters` has one `Note` per parameter of the function; each needs a default and an annotation of `TYPES`.
    """

    def enter(function: Callable[..., Generator]) -> Callable[..., Generator]:
        name = function.__name__
        signature = list(inspect.signature(function).parameters.values())[1:]  # without `run`
        if [p.name for p in signature] != list(parameters):
            raise TypeError(f"strategy '{name}': notes for {list(parameters)}, signature has {signature}")
        if not inspect.isgeneratorfunction(function):
            raise TypeError(f"strategy '{name}' must be a generator function: it has to yield its calls")
        _REGISTERED[name] = Strategy(
            name,
            title,
            source,
            inspect.cleandoc(function.__doc__ or ""),
            COMMON + tuple(_parameter(name, p, parameters[p.name]) for p in signature),
            assumptions,
            aliases,
            function,
        )
        return function

    return enter


def _parameter(strategy_name: str, parameter: inspect.Parameter, note: Note) -> Parameter:
    if parameter.annotation not in TYPES or parameter.default is inspect.Parameter.empty:
        raise TypeError(f"strategy '{strategy_name}': {parameter} needs a default and one of the annotations {TYPES}")
    return Parameter(parameter.name, parameter.annotation, parameter.default, note.help, note.published, note.origin)


def _library() -> dict[str, Strategy]:
    """All strategies by name; the files of this folder are imported on first use."""
    package = importlib.import_module("simulator.strategies")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"simulator.strategies.{module.name}")
    return _REGISTERED


def list_strategies() -> list[Strategy]:
    """Every strategy of the library, by name."""
    return [found for _, found in sorted(_library().items())]


def get_strategy(name: str) -> Strategy:
    """The strategy called `name`: its own name or an alias, case and hyphens aside. `UserError` with the nearest."""
    known = {known: found for found in _library().values() for known in (found.name, *found.aliases)}
    found = known.get(name.strip().lower().replace("-", "_"))
    if found is None:
        raise unknown_name("strategy", name, known, f"known: {', '.join(s.name for s in list_strategies())}")
    return found
