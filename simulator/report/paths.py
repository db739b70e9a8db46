"""Where a report may be written: what can be told before there is anything to write."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from simulator.errors import UserError


def check_writable(option: str, path: str) -> Path:
    """`path` as a Path when a file can be written there; UserError, in the name of `option`, says why not."""
    if not path:
        raise UserError(f"{option}: the file name is empty")
    target = Path(path).expanduser()
    if not target.parent.is_dir():
        raise UserError(f"{option} {path}: the folder '{target.parent}' does not exist")
    if target.is_dir():
        raise UserError(f"{option} {path}: this is a folder, expected a file name")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise UserError(f"{option} {path}: no permission to write there")
    return target


def check_apart(outputs: Mapping[str, str], inputs: Mapping[str, str | None]) -> None:
    """UserError when two of `outputs` (option: path) are one file, or one of them is a file that is read."""
    seen: dict[Path, str] = {}
    for option, path in inputs.items():
        if path is not None and Path(path).is_file():
            seen[Path(path).resolve()] = option
    for option, path in outputs.items():
        target = Path(path).expanduser().resolve()
        if target.exists() and not target.is_file():
            continue  # a device or a pipe holds whatever it is given
        if target in seen:
            raise UserError(f"{option} {path}: this is also the file of {seen[target]}, expected a file of its own")
        seen[target] = option
