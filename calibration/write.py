"""Write a fitted profile as TOML that a person can read and edit."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from simulator.errors import UserError
from simulator.parameters import SPECS
from simulator.profile import Calibration


def toml_value(value: object) -> str:
    """A plain value as TOML; floats with six digits."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.5e}"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    raise TypeError(f"no TOML form for {type(value).__name__}")


def parameter_lines(parameters: dict[str, dict[str, float]], title: str = "parameters") -> list[str]:
    """Groups of parameters as TOML tables, each value with its unit."""
    lines: list[str] = []
    for group, values in parameters.items():
        lines += ["", f"[{title}.{group}]"]
        lines += [f"{name} = {toml_value(value)}  # {SPECS[f'{group}.{name}'].unit}" for name, value in values.items()]
    return lines


def profile_text(profile: Calibration, command: str) -> str:
    """The profile as TOML; `command` is what reproduces it."""
    table = msgspec.to_builtins(profile)
    lines = [f"# Written by: {command}", ""]
    sections = {name: table.pop(name) for name in ("log_sd", "parameter_log_sd", "fitted_on")}
    parameters, notes, correlation = table.pop("parameters"), table.pop("notes"), table.pop("correlation")
    lines += [f"{name} = {toml_value(value)}" for name, value in table.items() if value is not None]
    lines += ["notes = [", *[f"    {toml_value(note)}," for note in notes], "]"]
    lines += ["correlation = [", *[f"    {toml_value([round(c, 3) for c in row])}," for row in correlation], "]"]
    lines += parameter_lines(parameters)
    for name, section in sections.items():
        if section:
            lines += ["", f"[{name}]"]
            lines += [f"{toml_key(key)} = {toml_value(value)}" for key, value in section.items()]
    return "\n".join(lines) + "\n"


def toml_key(key: str) -> str:
    """A key, quoted where TOML needs it."""
    return key if key.replace("_", "").isalnum() else json.dumps(key)


def write_text(path: str | Path, text: str, overwrite: bool) -> None:
    """Write a file. UserError when it exists and may not be overwritten, or cannot be written."""
    path = Path(path)
    if path.exists() and not overwrite:
        raise UserError(f"'{path}' exists; give another --out, or --overwrite to replace it")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"'{path}' cannot be written: {error.strerror}") from None


def write_profile(path: str | Path, profile: Calibration, command: str, overwrite: bool) -> None:
    """Write `profile_text` to a file, as `write_text` does."""
    write_text(path, profile_text(profile, command), overwrite)
