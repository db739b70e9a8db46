"""How many tokens a text has: length distributions and the strings that name them on a command line."""

from __future__ import annotations

import csv
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from simulator.errors import UserError

SYNTAX = "a whole number, uniform:LOW:HIGH, ratio:LENGTH:R, lognormal:MEAN:SIGMA, or file:PATH[:COLUMN]"

MAX_TOK = 100_000_000  # longer than any context; keeps every sum of lengths far from the limits of int64
MAX_SIGMA = 5.0


class Lengths(ABC):
    """A distribution of token counts. `str(lengths)` is the text that `parse_lengths` reads back."""

    @abstractmethod
    def sample(self, rng: np.random.Generator, n: int = 1) -> np.ndarray:
        """n token counts, int64 array of shape (n,), each >= 1."""

    def draw(self, rng: np.random.Generator) -> int:
        """One token count: what `sample` would give, for chains of calls without the cost of arrays."""
        return int(self.sample(rng, 1)[0])

    def at_most(self, limit_tok: int) -> Lengths:
        """The same lengths truncated at `limit_tok` tokens, as `max_tokens` truncates a generation."""
        return Truncated(self, _count(limit_tok, "the limit of a length"))

    def __add__(self, other: Lengths) -> Lengths:
        """The length of two texts one behind the other, drawn independently."""
        return Sum(self, other)


@dataclass(frozen=True)
class Fixed(Lengths):
    """Always `tokens` tokens; consumes no random numbers."""

    tokens: int

    def __post_init__(self) -> None:
        _count(self.tokens, "a length")

    def sample(self, rng: np.random.Generator, n: int = 1) -> np.ndarray:
        return np.full(n, self.tokens, dtype=np.int64)

    def draw(self, rng: np.random.Generator) -> int:
        return self.tokens

    def __str__(self) -> str:
        return str(self.tokens)


@dataclass(frozen=True)
class Uniform(Lengths):
    """Whole numbers from `low` to `high`, both included."""

    low: int
    high: int

    def __post_init__(self) -> None:
        _count(self.low, "the low end of a uniform length")
        _count(self.high, "the high end of a uniform length")
        if self.low > self.high:
            raise UserError(f"uniform length: the low end {self.low} is above the high end {self.high}")

    @classmethod
    def around(cls, mean_tok: float, ratio: float) -> Uniform:
        """mean * (1 - ratio) to mean * (1 + ratio): what serving benchmarks call a random range ratio."""
        if not 0.0 <= ratio < 1.0:
            raise UserError(f"uniform length: the ratio must be at least 0 and below 1, got {ratio}")
        return cls(max(1, round(mean_tok * (1.0 - ratio))), round(mean_tok * (1.0 + ratio)))

    @classmethod
    def below(cls, max_tok: int, ratio: float) -> Uniform:
        """ratio * max to max, as InferenceX draws lengths (R = 0.8); not what `around` means by a ratio.

        The low end is cut to a whole number, as that benchmark does, and is at least 1.
        """
        if not 0.0 <= ratio <= 1.0:
            raise UserError(f"uniform length: the ratio must be from 0 to 1, got {ratio}")
        return cls(max(1, int(_count(max_tok, "the high end of a uniform length") * ratio)), max_tok)

    def sample(self, rng: np.random.Generator, n: int = 1) -> np.ndarray:
        return rng.integers(self.low, self.high, size=n, endpoint=True)

    def __str__(self) -> str:
        return f"uniform:{self.low}:{self.high}"


@dataclass(frozen=True)
class LogNormal(Lengths):
    """Lognormal with arithmetic mean `mean_tok`; `sigma` is the standard deviation of the logarithm.

    The location is log(mean) - sigma**2 / 2, so that sigma changes the spread and leaves the mean alone.
    """

    mean_tok: float
    sigma: float

    def __post_init__(self) -> None:
        if not 1.0 <= self.mean_tok <= MAX_TOK:
            raise UserError(f"lognormal length: the mean must be from 1 to {MAX_TOK:,} tokens, got {self.mean_tok}")
        if not 0.0 <= self.sigma <= MAX_SIGMA:
            raise UserError(f"lognormal length: sigma must be from 0 to {MAX_SIGMA:g}, got {self.sigma}")

    def sample(self, rng: np.random.Generator, n: int = 1) -> np.ndarray:
        drawn = rng.lognormal(self._location(), self.sigma, size=n)
        return np.clip(np.rint(drawn), 1.0, MAX_TOK).astype(np.int64)

    def draw(self, rng: np.random.Generator) -> int:
        return min(max(round(rng.lognormal(self._location(), self.sigma)), 1), MAX_TOK)

    def _location(self) -> float:
        return math.log(self.mean_tok) - self.sigma**2 / 2.0

    def __str__(self) -> str:
        return f"lognormal:{self.mean_tok:g}:{self.sigma:g}"


@dataclass(frozen=True)
class Empirical(Lengths):
    """Measured lengths, drawn with replacement. `source` says where they came from and is what `str` shows."""

    tokens: tuple[int, ...]
    source: str = "a list"
    _array: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.tokens:
            raise UserError(f"lengths from {self.source}: no numbers found, expected one whole number per line")
        for number in self.tokens:
            _count(number, f"lengths from {self.source}: a length")
        object.__setattr__(self, "_array", np.array(self.tokens, dtype=np.int64))

    def sample(self, rng: np.random.Generator, n: int = 1) -> np.ndarray:
        return self._array[rng.integers(0, len(self._array), size=n)]

    def __str__(self) -> str:
        return self.source


@dataclass(frozen=True)
class Truncated(Lengths):
    """Lengths of `inner`, cut at `limit_tok`."""

    inner: Lengths
    limit_tok: int

    def sample(self, rng: np.random.Generator, n: int = 1) -> np.ndarray:
        return np.minimum(self.inner.sample(rng, n), self.limit_tok)

    def draw(self, rng: np.random.Generator) -> int:
        return min(self.inner.draw(rng), self.limit_tok)

    def __str__(self) -> str:
        return f"{self.inner} cut at {self.limit_tok}"


@dataclass(frozen=True)
class Sum(Lengths):
    """Lengths of one text behind another."""

    first: Lengths
    second: Lengths

    def sample(self, rng: np.random.Generator, n: int = 1) -> np.ndarray:
        return self.first.sample(rng, n) + self.second.sample(rng, n)

    def draw(self, rng: np.random.Generator) -> int:
        return self.first.draw(rng) + self.second.draw(rng)

    def __str__(self) -> str:
        return f"{self.first} + {self.second}"


def parse_lengths(text: str | int | Lengths) -> Lengths:
    """A distribution from its name, as `SYNTAX` says: "1024", "uniform:512:1024", "lognormal:4096:0.5" or a path.

    ratio:LENGTH:R is uniform on the whole numbers from R * LENGTH to LENGTH. Lognormal takes the mean and the standard
    deviation of the logarithm. Raises `UserError` in one sentence.
    """
    if isinstance(text, Lengths):
        return text
    if isinstance(text, (int, np.integer)) and not isinstance(text, bool):
        return Fixed(int(text))
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"length {text!r}: expected {SYNTAX}")
    text = text.strip()
    kind, _, rest = text.partition(":")
    if kind == "uniform":
        low, high = _numbers(text, rest, ("low", "high"))
        return Uniform(_whole(low, text), _whole(high, text))
    if kind == "ratio":
        length, ratio = _numbers(text, rest, ("length", "r"))
        return Uniform.below(_whole(length, text), ratio)
    if kind == "lognormal":
        return LogNormal(*_numbers(text, rest, ("mean", "sigma")))
    if kind == "file":
        return read_lengths(rest)
    if _is_number(text) and float(text).is_integer():  # 1024, or 1e3
        return Fixed(int(text) if text.lstrip("+-").isdecimal() else int(float(text)))
    if Path(text).exists() or "/" in text or text.lower().endswith((".txt", ".csv")):
        return read_lengths(text)
    raise UserError(f"length '{text}' is neither a number nor a file: expected {SYNTAX}")


def read_lengths(path: str) -> Empirical:
    """Measured lengths from a file: one whole number per line, or one column of a CSV file (PATH:COLUMN).

    A CSV file with one column needs no column name; its first line may be a header.
    """
    column = None
    if not Path(path).is_file() and ":" in path:
        path, _, column = path.rpartition(":")
    where = Path(path)
    if not where.is_file():
        what = "is not a file" if where.exists() else "does not exist"
        raise UserError(f"length file '{path}' {what}; expected {SYNTAX}")
    try:
        rows = [row for row in csv.reader(where.read_text(encoding="utf-8-sig").splitlines()) if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"length file '{path}' cannot be read as text: {error}") from error
    header = [name.strip() for name in rows[0]] if rows and not _is_number(rows[0][0]) else None
    if column is not None:
        if header is None or column not in header:
            known = ", ".join(header) if header else "none, the first line is a number"
            raise UserError(f"length file '{path}' has no column '{column}'; its columns: {known}")
        index = header.index(column)
    else:
        if rows and len(rows[0]) > 1:
            raise UserError(f"length file '{path}' has {len(rows[0])} columns: name one, as file:{path}:COLUMN")
        index = 0
    source = f"file:{path}" + (f":{column}" if column else "")
    first = 1 if header is not None else 0
    return Empirical(tuple(_cell(row, index, path, n) for n, row in enumerate(rows[first:], first + 1)), source)


def _cell(row: list[str], index: int, path: str, row_number: int) -> int:
    found = row[index].strip() if index < len(row) else ""
    if not _is_number(found) or float(found) != int(float(found)) or int(float(found)) < 1:
        raise UserError(f"length file '{path}', row {row_number}: found '{found}', expected a whole number >= 1")
    return int(float(found))


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _count(value: object, what: str) -> int:
    """`value` as a whole number of tokens, at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 1 <= value <= MAX_TOK:
        raise UserError(f"{what} must be a whole number of tokens from 1 to {MAX_TOK:,}, got {value}")
    return int(value)


def _numbers(text: str, rest: str, names: tuple[str, ...]) -> list[float]:
    """The numbers behind "kind:", exactly one per name."""
    fields = rest.split(":")
    if len(fields) != len(names) or not all(_is_number(part) for part in fields):
        kind = text.partition(":")[0]
        raise UserError(f"length '{text}': expected {':'.join((kind, *(name.upper() for name in names)))} with numbers")
    return [float(part) for part in fields]


def _whole(value: float, text: str) -> int:
    if value != int(value):
        raise UserError(f"length '{text}': {value:g} is not a whole number of tokens")
    return int(value)
