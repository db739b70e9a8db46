"""Write a fitted profile as TOML that a person can read and edit."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from simulator.errors import UserError
from simulator.profile import PARAMETERS, Calibration


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.5e}"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    raise TypeError(f"no TOML form for {type(value).__name__}")


def profile_text(profile: Calibration, command: str) -> str:
    """The profile as TOML; `command` is what reproduces it."""
    table = msgspec.to_builtins(profile)
    lines = [f"# Written by: {command}", ""]
    sections = {name: table.pop(name) for name in ("log_sd", "parameters", "parameter_log_sd", "fitted_on")}
    notes, correlation = table.pop("notes"), table.pop("correlation")
    lines += [f"{name} = {_toml(value)}" for name, value in table.items() if value is not None]
    lines += ["notes = [", *[f"    {_toml(note)}," for note in notes], "]"]
    lines += ["correlation = [", *[f"    {_toml([round(c, 3) for c in row])}," for row in correlation], "]"]
    for name, section in sections.items():
        if not section:
            continue
        lines += ["", f"[{name}]"]
        for key, value in section.items():
            unit = f"  # {PARAMETERS[key].unit}" if name == "parameters" else ""
            lines.append(f"{key} = {_toml(value)}{unit}")
    return "\n".join(lines) + "\n"


def write_profile(path: str | Path, profile: Calibration, command: str, overwrite: bool) -> None:
    """Write `profile_text`. UserError when the file exists and may not be overwritten, or cannot be written."""
    path = Path(path)
    if path.exists() and not overwrite:
        raise UserError(f"'{path}' exists; give another --out, or --overwrite to replace it")
    try:
        path.write_text(profile_text(profile, command), encoding="utf-8")
    except OSError as error:
        raise UserError(f"'{path}' cannot be written: {error.strerror}") from None
