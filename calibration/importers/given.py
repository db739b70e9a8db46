"""What the user states because the file does not: engine, GPU, split, lengths. Measurements are never given."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from calibration.importers.definitions import TOLERANCE, agree
from calibration.importers.names import engine_name
from calibration.importers.row import Row
from calibration.records import LOADS, METRICS, RunRecord
from simulator.errors import UserError, unknown_name

# Columns that a file measures or the importer makes: stating them would be inventing data.
MEASURED = (*METRICS, "run_id", "flags", "rel_noise", "power_scope")
STATED = tuple(name for name in RunRecord.__struct_fields__ if name not in MEASURED)
# A file may name a model by a path, a GPU by its runner and a format in general terms (fp8): the user knows better.
OVERRULED = ("model", "gpu", "weight_dtype", "source")
_WORDS = {"bool": "true or false", "int": "a whole number", "float": "a number"}
_TYPES = {info.name: info.type for info in msgspec.structs.fields(RunRecord)}


def read_given(options: Mapping[str, str | None], settings: Iterable[str]) -> dict[str, Any]:
    """Columns from named options (None: not given) and from COLUMN=VALUE settings. UserError that names the option."""
    given: dict[str, Any] = {}
    for name, value in options.items():
        if value is not None:
            given |= _engine(value) if name == "engine" else {name: _value(name, value)}
    for setting in settings:
        name, equals, value = setting.partition("=")
        name = name.strip()
        if not equals or not value.strip():
            raise UserError(f"--set '{setting}': expected COLUMN=VALUE")
        if name in MEASURED:
            raise UserError(
                f"--set {name}: is measured or made by the import, expected a column that describes the run"
            )
        if name not in STATED:
            raise unknown_name("column", name, STATED, "see docs/records.md")
        given[name] = _value(name, value.strip())
    return given


def _engine(text: str) -> dict[str, str]:
    """NAME or NAME:VERSION."""
    name, colon, version = text.partition(":")
    word = engine_name(name.strip())
    if word is None or (colon and not version.strip()):
        raise UserError(f"--engine '{text}': expected NAME or NAME:VERSION, for instance vllm:0.11.1")
    return {"engine": word} | ({"engine_version": version.strip()} if colon else {})


def _value(name: str, text: str) -> Any:
    if name == "gpu":
        return _gpu(text)
    if name == "load" and text not in LOADS:
        raise UserError(f"load '{text}': expected one of {', '.join(LOADS)}")
    if name in ("weight_dtype", "activation_dtype", "kv_dtype"):
        _check_format(name, text)
    if name == "length_spread" and not re.fullmatch(r"fixed|uniform:(0(\.\d+)?|1(\.0+)?)|dataset:.+", text):
        raise UserError(f"length_spread '{text}': expected fixed, uniform:R with R from 0 to 1, or dataset:NAME")
    try:
        value = msgspec.convert(text, _TYPES[name], strict=False)
    except msgspec.ValidationError:
        value = None
    if value is None or not text.strip():
        raise UserError(f"{name} '{text}': expected {_expected(name)}")
    if isinstance(value, int | float) and not isinstance(value, bool) and not 0.0 < value < 1e12:
        raise UserError(f"{name} '{text}': expected a number above 0")
    return value


def _expected(name: str) -> str:
    kinds = str(_TYPES[name])
    return next((words for word, words in _WORDS.items() if word in kinds), "text")


def _gpu(text: str) -> str:
    """A known GPU's id; the path of a data sheet stays as it is, once it could be read."""
    from simulator.device import load_device

    device = load_device(text)
    return text if text.lower().endswith(".toml") else device.id


def _check_format(name: str, text: str) -> None:
    from simulator.precision import ACTIVATION_BYTE, KV_BYTE, WEIGHT_BYTE

    known = {"weight_dtype": WEIGHT_BYTE, "activation_dtype": ACTIVATION_BYTE, "kv_dtype": KV_BYTE}[name]
    if text not in known:
        raise unknown_name(name, text, known, f"known: {', '.join(known)}")


def apply_given(row: Row, given: Mapping[str, Any]) -> None:
    """Fill in what the file left open. UserError where the file states something else."""
    used = []
    for name, value in given.items():
        stated = row.columns.get(name)
        if name == "source":
            row.source = value
        elif stated is None:
            row.columns[name] = value
            used.append(name)
        elif name in OVERRULED and stated != value:
            row.columns[name] = value
            row.mark(f"given:{name}, the file has {stated}")
        elif not _same(stated, value):
            close = "" if isinstance(stated, str | bool) else f" to {TOLERANCE:.0%}"
            raise UserError(f"{row.where}: states {name} {stated}, but {value} was given, expected the same{close}")
    if used:
        row.mark(f"given:{'+'.join(used)}")


def _same(stated: Any, value: Any) -> bool:
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (stated, value))
    return agree(stated, value) if numbers else stated == value
