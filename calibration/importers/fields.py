"""Values out of a result file: each one checked on the way, each complaint names the file and the field."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from simulator.errors import UserError

_MISSING = object()
LARGEST = 1e30  # beyond it sums overflow; nanoseconds since 1970 are below 1e19
LONGEST = 500  # characters of a text that goes into a record; names and paths are shorter


@dataclass(frozen=True)
class SourceFile:
    """One result file, or one document of it: a JSON object, or one per line or list entry."""

    name: str
    documents: tuple[Any, ...]
    first: int | None = None  # place of the first document in the file; None: this is the whole file

    def each(self, noun: str = "result") -> Iterator[Fields]:
        """Every document; its place in the file is named where there are several."""
        for index, document in enumerate(self.documents):
            alone = self.first is None and len(self.documents) == 1
            yield Fields(document, self.name if alone else f"{self.name}, {noun} {(self.first or 0) + index + 1}")

    def parts(self) -> Iterator[SourceFile]:
        """Every document as a source of its own."""
        for index, document in enumerate(self.documents):
            yield SourceFile(self.name, (document,), None if len(self.documents) == 1 else index)

    @property
    def digest(self) -> str:
        """Hash of the content: the same under any name or formatting, and in a file to which runs were added."""
        found = hashlib.sha256()
        try:
            for document in self.documents:
                found.update(json.dumps(document, sort_keys=True).encode() + b"\n")
        except RecursionError:  # reading had just enough room for it
            raise UserError(f"{self.name}: not JSON that can be read: thousands of brackets in each other") from None
        return found.hexdigest()


class _TwiceError(ValueError):
    """A key that an object has twice; readers would disagree on which one counts."""


def read_source(path: str | Path) -> SourceFile:
    """A JSON file, or one with a JSON object per line. UserError when it is neither, or empty."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: does not exist, expected a result file of a benchmark tool") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not JSON: no UTF-8 text at byte {error.start}") from None
    documents = _documents(text, str(path))
    for index, document in enumerate(documents):
        if not isinstance(document, dict):
            place = f", entry {index + 1}" if len(documents) > 1 else ""
            raise UserError(f"{path}{place}: holds {shown(document)}, expected a JSON object")
    return SourceFile(str(path), tuple(documents))


def _documents(text: str, path: str) -> list[Any]:
    if not text.strip():
        raise UserError(f"{path}: not JSON: the file is empty")
    try:
        whole = _parsed(text, path)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise UserError(f"{path}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from None
        return _lines(text, path)
    if isinstance(whole, list) and not whole:
        raise UserError(f"{path}: the list is empty, expected at least one result")
    return whole if isinstance(whole, list) else [whole]


def _lines(text: str, path: str) -> list[Any]:
    found = []
    for number, line in enumerate(text.split("\n"), start=1):  # texts of requests may hold other line separators
        if line.strip():
            try:
                found.append(_parsed(line, path))
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number}, column {error.colno}: not JSON: {error.msg}") from None
    return found


def _parsed(text: str, path: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_twice)
    except json.JSONDecodeError:
        raise
    except _TwiceError as error:
        raise UserError(f"{path}: field '{printable(str(error))}' stands twice in one object, expected once") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise UserError(f"{path}: not JSON that can be read: {error}") from None


def _without_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        raise _TwiceError(next(key for key, _ in pairs if key in seen or seen.add(key)))
    return found


def printable(text: str) -> str:
    """A text of the file in a complaint: whatever does not print, line breaks too, is escaped."""
    return text if text.isprintable() else repr(text)[1:-1]


def shown(value: Any) -> str:
    """A value in a complaint: short, without a line break."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = "null" if value is None else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


class Fields:
    """One JSON object of a file. Paths have dots: "config.strategy.type_"; null counts as not stated."""

    def __init__(self, data: dict[str, Any], where: str, prefix: str = "") -> None:
        self.data, self.where, self.prefix = data, where, prefix

    def get(self, path: str) -> Any:
        """The raw value, None when it is null or not there."""
        value = self._find(path)
        return None if value is _MISSING else value

    def has(self, path: str) -> bool:
        """Whether the field is there and not null."""
        return self.get(path) is not None

    def number(self, path: str) -> float:
        """A finite number, at least 0. UserError when it is missing or none."""
        return self._number(self._required(path, "a number"), path)

    def positive(self, path: str) -> float:
        """A finite number above 0."""
        value = self.number(path)
        if value == 0.0:
            self.refuse(path, "is 0, expected more than 0")
        return value

    def optional(self, path: str) -> float | None:
        """A number as `number` reads it; None when the field is null or not there."""
        return self.number(path) if self.has(path) else None

    def count(self, path: str) -> int:
        """A whole number of at least 1."""
        value = self.positive(path)
        if value != int(value):
            self.refuse(path, f"is {value:g}, expected a whole number")
        return int(value)

    def optional_count(self, path: str) -> int | None:
        """A whole number of at least 1; None when the field is null or not there."""
        return self.count(path) if self.has(path) else None

    def whole(self, path: str) -> int:
        """A whole number of at least 0."""
        return self.count(path) if self.number(path) else 0

    def text(self, path: str) -> str:
        """A string that is not empty, all of it printable: texts go into records, a line each."""
        return self.text_of(self._required(path, "text"), path)

    def text_of(self, value: Any, path: str) -> str:
        """A value that stands at `path`, as `text` reads it."""
        if not isinstance(value, str) or not value.strip():
            self.refuse(path, f"is {shown(value)}, expected text")
        if not value.strip().isprintable() or len(value) > LONGEST:
            self.refuse(path, f"is {shown(value)}, expected printable text of at most {LONGEST} characters")
        return value.strip()

    def optional_text(self, path: str) -> str | None:
        """A string; None when it is empty, null or not there."""
        return None if self.get(path) in (None, "") else self.text(path)

    def flag(self, path: str) -> bool | None:
        """true or false; None when the field is null or not there."""
        value = self.get(path)
        if value is not None and not isinstance(value, bool):
            self.refuse(path, f"is {shown(value)}, expected true or false")
        return value

    def section(self, path: str) -> Fields:
        """An object inside this one."""
        value = self._required(path, "an object")
        if not isinstance(value, dict):
            self.refuse(path, f"is {shown(value)}, expected an object")
        return Fields(value, self.where, self._name(path) + ".")

    def child(self, key: str) -> Fields:
        """The object under a key that may itself hold dots, an address for instance."""
        value = self.data.get(key)
        if not isinstance(value, dict):
            self.refuse(key, f"is {shown(value)}, expected an object")
        return Fields(value, self.where, self._name(key) + ".")

    def entries(self, path: str) -> list[Any]:
        """A list."""
        value = self._required(path, "a list")
        if not isinstance(value, list):
            self.refuse(path, f"is {shown(value)}, expected a list")
        return value

    def sections(self, path: str, noun: str) -> list[Fields]:
        """A list of objects, each of which says where it stands."""
        found = []
        for index, value in enumerate(self.entries(path)):
            if not isinstance(value, dict):
                self.refuse(f"{path}[{index}]", f"is {shown(value)}, expected an object")
            found.append(Fields(value, f"{self.where}, {noun} {index + 1}"))
        return found

    def numbers(self, path: str) -> list[float]:
        """A list of finite numbers, each at least 0."""
        return self.numbers_of(self.entries(path), path)

    def number_lists(self, path: str) -> list[list[float]]:
        """A list of lists of finite numbers, each at least 0."""
        return [self.numbers_of(value, f"{path}[{index}]") for index, value in enumerate(self.entries(path))]

    def numbers_of(self, value: Any, path: str) -> list[float]:
        """A value that stands at `path`, as a list of numbers."""
        if not isinstance(value, list):
            self.refuse(path, f"is {shown(value)}, expected a list of numbers")
        if all(type(entry) in (int, float) and 0 <= entry <= LARGEST for entry in value):
            return [float(entry) for entry in value]
        return [self._number(entry, f"{path}[{index}]") for index, entry in enumerate(value)]

    def refuse(self, path: str, complaint: str) -> NoReturn:
        """The UserError about a field."""
        raise UserError(f"{self.where}: field '{printable(self._name(path))}' {complaint}")

    def _number(self, value: Any, path: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(path, f"is {shown(value)}, expected a number")
        if isinstance(value, float) and math.isnan(value):
            self.refuse(path, "is NaN, expected a finite number")
        if value < 0:
            self.refuse(path, f"is {shown(value)}, expected a number of at least 0")
        if value > LARGEST:
            self.refuse(path, f"is {shown(value)}, expected a finite number below {LARGEST:g}")
        return float(value)

    def _required(self, path: str, expected: str) -> Any:
        value = self._find(path)
        if value is _MISSING:
            self.refuse(path, f"is missing, expected {expected}")
        if value is None:
            self.refuse(path, f"is null, expected {expected}")
        return value

    def _find(self, path: str) -> Any:
        value: Any = self.data
        for part in path.split("."):
            if not isinstance(value, dict) or part not in value:
                return _MISSING
            value = value[part]
        return value

    def _name(self, path: str) -> str:
        return self.prefix + path
