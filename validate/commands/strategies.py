"""`validate strategies`: the library of strategies against the figures that their papers publish."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from simulator.errors import UserError

EXIT_MISSED = 1


@click.command(
    short_help="The library of strategies against published figures.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@click.option("--markdown", "page", metavar="FILE.md", help="Write the page of all strategies and papers, too.")
@click.pass_context
def strategies(ctx: click.Context, names: tuple[str, ...], as_json: bool, page: str | None) -> None:
    """Fly what the papers flew and compare with the figures that they publish.

    NAME is a paper's comparison (threadweaver) or a strategy of the library; without one, all are run. Prints each
    figure with its simulated value, the error simulated / published - 1, and a verdict: met within the target, missed
    (explained) outside it with a reason that is known, missed without one; reported where there is no target, as for
    figures that only third parties quote; not reproduced where the paper leaves out too much. Sums are kept apart by
    kind: predictions, re-implementations, fits, arithmetic. What was flown and assumed, and why: --json, or
    docs/strategies.md.

    Exit codes: 0 no figure is missed without an explanation, 1 one is, 2 a mistake in what you gave.

    \b
    Examples:
      validate strategies
      validate strategies threadweaver hogwild
      validate strategies --markdown docs/strategies.md
    """
    from simulator.cli.progress import ProgressBar
    from validate.published import compare_papers
    from validate.published.report import missed, text, to_json

    if page and names:
        raise UserError(f"--markdown writes the page of all papers; expected no NAME with it, found '{names[0]}'")
    with ProgressBar("comparing papers") as bar:
        papers = compare_papers(names, bar)
    if not papers:
        print(f"validate: nothing that could be compared is published for {', '.join(names)}", file=sys.stderr)
    if page:
        _write_page(page, papers)
    click.echo(json.dumps(to_json(papers), indent=2, allow_nan=False) if as_json else text(papers))
    if missed(papers):
        ctx.exit(EXIT_MISSED)


def _write_page(path: str, papers: list) -> None:
    from validate.commands.strategies_page import strategies_page

    text = strategies_page(papers)
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"page '{path}' cannot be written: {error.strerror}") from None
    print(f"validate: wrote {path}", file=sys.stderr)
