"""The library of strategies: what each is called, what it takes, and where its defaults come from.

A strategy is one file in this folder with one generator function under the decorator `strategy`. Its parameters
and defaults are those of the function's signature; the decorator adds what a signature cannot say.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NewType

from simulator.errors import UserError, unknown_name
from simulator.workload.lengths import MAX_TOK, Lengths, parse_lengths
from simulator.workload.seconds import Seconds, parse_seconds

Share = NewType("Share", float)  # annotation of a parameter: a number from 0 to 1
Value = int | float | str | Lengths | Seconds
KINDS = ("int", "float", "Share", "Lengths", "Seconds", "str")  # what a parameter may be annotated with

MAX_CALLS = 4096  # most rounds, samples or drafts: beyond it a simulation takes minutes and no paper goes


@dataclass(frozen=True)
class Note:
    """What a signature cannot say about a parameter: help, the origin of its default, and what values it may have."""

    help: str
    origin: str
    published: bool
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] | None = None


def published(
    help_text: str,
    origin: str,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Note:
    """A parameter whose default stands in the paper; `origin` says where."""
    return Note(help_text, origin, True, least, most, choices)


def assumed(
    help_text: str,
    reason: str,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Note:
    """A parameter whose default is our assumption; `reason` says why this value."""
    return Note(help_text, reason, False, least, most, choices)


@dataclass(frozen=True)
class Parameter:
    """One parameter of a strategy. `default` is a plain value: a number, or the text of a distribution.

    `kind` is "int" (whole number, >= 1 unless `least` says other), "float" (>= 0 unless `least` says other), "Share"
    (from 0 to 1), "Lengths" (`parse_lengths`), "Seconds" (`parse_seconds`) or "str" (one of `choices`, if it has any).
    """

    name: str
    kind: str
    default: int | float | str
    help: str
    published: bool
    origin: str
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] | None = None

    def parse(self, value: Any, where: str) -> Value:
        """`value` (text from a command line, number, or distribution) as this parameter's type, or `UserError`."""
        where = f"{where}, parameter '{self.name}'"
        if self.kind in ("Lengths", "Seconds"):
            try:
                return parse_lengths(value) if self.kind == "Lengths" else parse_seconds(value)
            except UserError as error:
                raise UserError(f"{where}: {error}") from error
        found = {"int": _whole, "str": _word}.get(self.kind, _number)(value)
        if found is None or not self._allows(found):
            raise UserError(f"{where}: found '{value}', expected {self.expected()}")
        return found

    def _allows(self, value: int | float | str) -> bool:
        if isinstance(value, str):
            return self.choices is None or value in self.choices
        least, most = self._bounds()
        return least <= value <= most

    def _bounds(self) -> tuple[float, float]:
        """Least and most of a number; what the note does not say follows from the kind."""
        least, most = {
            "int": (1, MAX_TOK if self._counts_tokens() else MAX_CALLS),
            "Share": (0.0, 1.0),
        }.get(self.kind, (0.0, math.inf))
        return (least if self.least is None else self.least), (most if self.most is None else self.most)

    def _counts_tokens(self) -> bool:
        return self.name.endswith("_tok")

    def expected(self) -> str:
        """What values it takes, in words: 'a whole number >= 1, at most 4,096'."""
        if self.kind in ("Lengths", "Seconds"):
            return "a length" if self.kind == "Lengths" else "a duration"
        if self.kind == "str":
            return "a word" if self.choices is None else f"one of {', '.join(self.choices)}"
        least, most = self._bounds()
        if self.kind == "Share":
            return f"a number from {least:g} to {most:g}"
        told = math.isfinite(most) and not (self._counts_tokens() and self.most is None)
        noun = "a whole number" if self.kind == "int" else "a number"
        return f"{noun} >= {least:g}" + (f", at most {most:,.15g}" if told else "")


def _whole(value: Any) -> int | None:
    """`value` as a whole number; None when it is none."""
    if isinstance(value, bool):
        return None
    try:
        whole = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return whole if isinstance(value, str) or whole == value else None


def _number(value: Any) -> float | None:
    """`value` as a finite number; None when it is none."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _word(value: Any) -> str | None:
    """`value` as text without blanks around it; None when it is none."""
    return value.strip() if isinstance(value, str) else None


def _plain(value: Value) -> int | float | str:
    """`value` as JSON holds it: a distribution that is one number as that number, others by their text."""
    if not isinstance(value, (Lengths, Seconds)):
        return value
    text = str(value)
    if text.isdigit():
        return int(text)
    number = _number(text)
    return text if number is None else number


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
    """A strategy. `description` is the docstring's text; `source` names the paper.

    `roles`: what calls another model may play, by name, and what it does there. `questions`: how many questions a
    strategy that works on a set of them gets by default, None for those that work on one. `streams`: the parameter
    that says how many parallel streams the model has. `diffusion`: it needs a diffusion model.
    """

    name: str
    title: str
    source: str
    description: str
    parameters: tuple[Parameter, ...]
    assumptions: tuple[str, ...]
    aliases: tuple[str, ...]
    function: Callable[..., Generator]
    roles: Mapping[str, str] = field(default_factory=dict)
    questions: int | None = None
    streams: str | None = None
    diffusion: bool = False

    def resolve(self, given: Mapping[str, Any] | None = None) -> dict[str, Value]:
        """All parameters by name, `given` ones checked and converted, the rest at their defaults.

        Hyphens stand for underscores. Raises `UserError` for an unknown name or a bad value.
        """
        where = f"strategy '{self.name}'"
        names = [parameter.name for parameter in self.parameters]
        found = {}
        for raw, value in (given or {}).items():
            name = raw.replace("-", "_")
            if name not in names:
                raise unknown_name("parameter", raw, names, f"it takes {', '.join(names)}", where)
            if name in found:
                raise UserError(f"{where}: parameter '{name}' is given twice")
            found[name] = value
        return {p.name: p.parse(found.get(p.name, p.default), where) for p in self.parameters}

    def plain(self, given: Mapping[str, Any] | None = None) -> dict[str, int | float | str]:
        """`resolve(given)` as plain JSON types: numbers and words, and distributions by their text."""
        return {name: _plain(value) for name, value in self.resolve(given).items()}

    def start(self, run: Any, values: Mapping[str, Value]) -> Generator:
        """The strategy's generator on `run`; `values` as returned by `resolve`."""
        common = {parameter.name for parameter in COMMON}
        return self.function(run, **{name: value for name, value in values.items() if name not in common})


def strategy(
    title: str,
    source: str,
    parameters: Mapping[str, Note],
    assumptions: tuple[str, ...] = (),
    aliases: tuple[str, ...] = (),
    roles: Mapping[str, str] | None = None,
    questions: int | None = None,
    streams: str | None = None,
    diffusion: bool = False,
) -> Callable[[Callable[..., Generator]], Callable[..., Generator]]:
    """Decorator that makes a strategy of a generator function, under its own name; see `Strategy` for the arguments.

    `parameters` has one `Note` per parameter of the function; each needs a default and an annotation of `KINDS`.
    The strategy is put on the function as its attribute `strategy`, where the library finds those of this folder.
    """

    def enter(function: Callable[..., Generator]) -> Callable[..., Generator]:
        name = function.__name__
        if not inspect.isgeneratorfunction(function):
            raise TypeError(f"strategy '{name}' must be a generator function: it has to yield its calls")
        found = Strategy(
            name, title, source, inspect.cleandoc(function.__doc__ or ""),
            COMMON + _parameters(function, parameters), tuple(assumptions), tuple(aliases), function,
            dict(roles or {}), questions, streams, diffusion,
        )  # fmt: skip
        _check(found)
        function.strategy = found
        return function

    return enter


def _parameters(function: Callable[..., Generator], notes: Mapping[str, Note]) -> tuple[Parameter, ...]:
    """The parameters of a strategy's function, without `run`; TypeError when the notes are not for exactly these."""
    where = f"strategy '{function.__name__}'"
    run, *signature = inspect.signature(function).parameters.values() or [None]
    if run is None:
        raise TypeError(f"{where} takes no run: expected it as the first argument")
    names = [p.name for p in signature]
    if names != list(notes):
        raise TypeError(f"{where}: notes for {list(notes)}, the signature has {names}")
    return tuple(read_parameter(p, notes[p.name], where) for p in signature)


def read_parameter(parameter: inspect.Parameter, note: Note, where: str) -> Parameter:
    """A parameter from the signature of a function, its default checked and plain; annotations count by their name."""
    kind = parameter.annotation
    kind = (kind if isinstance(kind, str) else getattr(kind, "__name__", "")).rpartition(".")[2]
    if kind not in KINDS or parameter.default is inspect.Parameter.empty:
        raise TypeError(f"{where}: {parameter} needs a default and one of the annotations {KINDS}")
    choices = None if note.choices is None else tuple(note.choices)
    found = Parameter(
        parameter.name, kind, parameter.default, note.help, note.published, note.origin, note.least, note.most, choices
    )
    return replace(found, default=_plain(found.parse(parameter.default, f"{where}, as its default")))


def _check(found: Strategy) -> None:
    """TypeError when what the decorator says does not fit together."""
    kinds = {p.name: p.kind for p in found.parameters}
    if len(kinds) < len(found.parameters):
        common = ", ".join(p.name for p in COMMON)
        raise TypeError(f"strategy '{found.name}': every strategy has {common}, so its function cannot take it")
    if found.streams is not None and kinds.get(found.streams) != "int":
        raise TypeError(f"strategy '{found.name}': streams='{found.streams}' is not one of its int parameters")
    if found.questions is not None and (isinstance(found.questions, bool) or found.questions < 1):
        raise TypeError(f"strategy '{found.name}': questions={found.questions}, expected a number >= 1 or None")


def strategies_of(module: Any) -> list[Strategy]:
    """The strategies that a module defines, in its order; those that it imports are not its own."""
    functions = (value for value in vars(module).values() if inspect.isfunction(value))
    return [f.strategy for f in functions if f.__module__ == module.__name__ and hasattr(f, "strategy")]


@cache
def _library() -> Mapping[str, Strategy]:
    """All strategies of this folder by name, in alphabetical order; its files are imported on first use."""
    package = importlib.import_module("simulator.strategies")
    modules = [
        importlib.import_module(f"simulator.strategies.{m.name}") for m in pkgutil.iter_modules(package.__path__)
    ]
    found = sorted((s for module in modules for s in strategies_of(module)), key=lambda s: s.name)
    library = {s.name: s for s in found}
    if len(library) < len(found):
        raise TypeError(f"two strategies of the library have the same name: {[s.name for s in found]}")
    return library


def list_strategies() -> list[Strategy]:
    """Every strategy of the library, by name."""
    return list(_library().values())


def get_strategy(name: str) -> Strategy:
    """The strategy called `name`: its own name or an alias, case and hyphens aside; or a file, FILE.py[:FUNCTION].

    `UserError` with the nearest names.
    """
    from simulator.strategies.from_file import is_file_name, load_strategy  # it needs this module

    if is_file_name(name):
        return load_strategy(name)
    known = {known: found for found in _library().values() for known in (found.name, *found.aliases)}
    found = known.get(name.strip().lower().replace("-", "_"))
    if found is None:
        hint = "all of them: simulate --list strategies; one of your own is a file: ./mine.py"
        raise unknown_name("strategy", name, known, hint)
    return found
