"""Typed access to the fields of one config.json; every mistake becomes one sentence naming file and field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from simulator.errors import UserError

_TYPE_NAMES = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
}
_MISSING = object()


class Fields:
    """Read-only view of a JSON object. A field that is null counts as absent, as it does for Hugging Face.

    Methods take several names for fields that go by several names; the first present one is read.
    """

    def __init__(self, values: Mapping[str, Any], source: str, prefix: str = "") -> None:
        self.values = values
        self.source = source
        self.prefix = prefix

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def error(self, name: str, complaint: str) -> UserError:
        """A `UserError` about one field."""
        return UserError(f"{self.source}: field '{self.prefix}{name}': {complaint}")

    def with_defaults(self, defaults: Mapping[str, Any]) -> Fields:
        """The same fields, with `defaults` where they are absent."""
        present = {name: value for name, value in self.values.items() if value is not None}
        return Fields({**defaults, **present}, self.source, self.prefix)

    def child(self, name: str) -> Fields:
        """The nested object `name`."""
        return Fields(self._typed((name,), dict, _MISSING)[1], self.source, f"{self.prefix}{name}.")

    def count(self, *names: str, default: int | None = None) -> int:
        """An integer of at least 1. Required unless a default is given."""
        return self._at_least(1, names, _MISSING if default is None else default)

    def optional_count(self, *names: str) -> int | None:
        """An integer of at least 1, or None when absent."""
        return self._at_least(1, names, None)

    def whole(self, *names: str, default: int = 0) -> int:
        """An integer of at least 0."""
        return self._at_least(0, names, default)

    def number(self, *names: str, default: float) -> float:
        """A positive number."""
        name, value = self._typed(names, float, default)
        if not value > 0:
            raise self.error(name, f"found {value}, expected a positive number")
        return float(value)

    def flag(self, *names: str, default: bool = False) -> bool:
        return self._typed(names, bool, default)[1]

    def text(self, *names: str, default: str | None = None) -> str:
        return self._typed(names, str, _MISSING if default is None else default)[1]

    def optional_list(self, name: str, element: type, length: int | None = None) -> list[Any] | None:
        """A list of `element`s (with `length`: of exactly that many), or None when absent."""
        found = self._typed((name,), list, None)[1]
        if found is None:
            return None
        for index, value in enumerate(found):
            if not _is_a(value, element):
                raise self.error(f"{name}[{index}]", f"found {_show(value)}, expected {_TYPE_NAMES[element]}")
        if length is not None and len(found) != length:
            raise self.error(name, f"found {len(found)} entries, expected {length}, one per layer")
        return found

    def _at_least(self, minimum: int, names: tuple[str, ...], default: Any) -> Any:
        name, value = self._typed(names, int, default)
        if value is not None and value < minimum:
            raise self.error(name, f"found {value}, expected an integer of at least {minimum}")
        return value

    def _typed(self, names: tuple[str, ...], kind: type, default: Any) -> tuple[str, Any]:
        for name in self._present(names):
            value = self.values[name]
            if not _is_a(value, kind):
                raise self.error(name, f"found {_show(value)}, expected {_TYPE_NAMES[kind]}")
            return name, value
        if default is _MISSING:
            raise self.error(names[0], f"missing, expected {_TYPE_NAMES[kind]}")
        return names[0], default

    def _present(self, names: tuple[str, ...]) -> Iterator[str]:
        return (name for name in names if name in self)


def _is_a(value: Any, kind: type) -> bool:
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if kind is float else kind)


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
