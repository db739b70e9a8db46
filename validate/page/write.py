"""Writes the page: Markdown first, then the same rendered to HTML with the figures inside."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any

from simulator.errors import UserError
from validate.page.document import document
from validate.page.figures import draw_figures
from validate.suite import Verdict

STYLE = Path(__file__).with_name("style.css")
MARKDOWN, PAGE, FIGURES = "report.md", "report.html", "figures"


def write_page(folder: str | Path, verdict: Verdict, report: dict[str, Any]) -> list[Path]:
    """Write report.html, report.md and figures/ into `folder`; returns the two documents' paths.

    `report`: see `validate.summary.summary`. UserError when the folder cannot be written.
    """
    folder = Path(folder)
    try:
        (folder / FIGURES).mkdir(parents=True, exist_ok=True)
        figures = draw_figures(verdict, report, folder / FIGURES)
        text = document(report, {name: f"{FIGURES}/{path.name}" for name, path in figures.items()})
        (folder / MARKDOWN).write_text(text, encoding="utf-8")
        (folder / PAGE).write_text(_html(text, f"validate {report['source']}", folder), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--report {folder}: cannot be written: {error.strerror}") from None
    return [folder / PAGE, folder / MARKDOWN]


def _html(text: str, title: str, folder: Path) -> str:
    """One page that needs no other file: figures as data, style inside, no script."""
    from markdown_it import MarkdownIt

    render = MarkdownIt("commonmark", {"html": True}).enable("table")
    tokens = render.parse(text)
    for token in (child for block in tokens for child in (block.children or ())):
        if token.type == "image":
            data = base64.b64encode((folder / str(token.attrs["src"])).read_bytes()).decode()
            token.attrs["src"] = f"data:image/png;base64,{data}"
    body = render.renderer.render(tokens, render.options, {})
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n"
        f"<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )
