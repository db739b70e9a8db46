"""Where a report may be written: what can be told before there is anything to write."""

from __future__ import annotations

import os
from pathlib import Path

from simulator.errors import UserError


def check_writable(option: str, path: str) -> Path:
    """`path` as a Path when a file can be written there; UserError, in the name of `option`, says why not."""
    target = Path(path).expanduser()
    if not target.parent.is_dir():
        raise UserError(f"{option} {path}: the folder '{target.parent}' does not exist")
    if target.is_dir():
        raise UserError(f"{option} {path}: this is a folder, expected a file name")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise UserError(f"{option} {path}: no permission to write there")
    return target
