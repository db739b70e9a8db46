"""Pieces of Markdown: tables, lists, folded parts, links to papers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5}(?:v\d+)?)")
_GITHUB = re.compile(r"github:([\w.-]+/[\w.-]*\w)")
_CODE = re.compile(r"(`[^`]*`)")


def prose(text: str) -> str:
    """`text` on one line, with links to papers; what Markdown would read as HTML or emphasis shows as it is."""
    parts = _CODE.split(" ".join(text.split()))
    return "".join(part if part.startswith("`") else _plain(part) for part in parts)


def _plain(text: str) -> str:
    escaped = text.replace("<", "&lt;").replace("*", r"\*")
    linked = _ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", escaped)
    return _GITHUB.sub(r"[github:\1](https://github.com/\1)", linked)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A table; the columns in `right` hold numbers."""
    marks = ["--:" if index in right else "---" for index in range(len(head))]
    lines = (" | ".join(cell.replace("|", r"\|") for cell in row) for row in (head, marks, *rows))
    return "\n".join(f"| {line} |" for line in lines)


def bullets(items: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"* {item}" for item in items)


def folded(title: str, body: str) -> str:
    """A part that opens at a click. `title` is HTML."""
    return f"<details>\n<summary>{title}</summary>\n\n{body}\n\n</details>"


def paragraphs(parts: Iterable[str]) -> str:
    """Parts with a blank line between them, empty ones left out."""
    return "\n\n".join(part for part in parts if part)
