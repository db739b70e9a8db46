"""Small files in which the system says what it is: /proc, /sys and their like."""

from __future__ import annotations

from pathlib import Path


def system_text(path: str | Path) -> str | None:
    """The content without blanks and zero bytes around it; None for an empty file, and one that cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\0 \t\r\n") or None
    except OSError:
        return None
