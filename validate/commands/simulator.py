"""`validate simulator`: the simulator against its own laws, on every GPU that ships."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from simulator.errors import UserError

if TYPE_CHECKING:
    from validate.laws.suite import Report

EXIT_BROKEN = 1


@click.command(
    short_help="The simulator against its own laws, on every GPU.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option("--gpu", "gpus", metavar="NAME", multiple=True, help="Only this GPU (can be given several times).")
@click.option("--model", "models", metavar="NAME", multiple=True, help="Only this model of the suite (likewise).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with every result instead of the tables.")
@click.option("--markdown", "page", metavar="FILE.md", help="Write the page of all laws, too.")
@click.pass_context
def simulator(
    ctx: click.Context, gpus: tuple[str, ...], models: tuple[str, ...], as_json: bool, page: str | None
) -> None:
    """Hold the simulator against laws that need no measurement.

    For every GPU that ships and a set of models: latency of a lone request and throughput of a full server between
    bounds that the data sheet imposes, the latency-throughput curve, curves that may only rise, conservation of tokens,
    KV blocks, time and energy, memory, and two replicas as the same server twice. Prints for each law how many
    deployments keep it, and where it comes closest to being broken: value, bound and margin. Models that do not fit a
    GPU are counted apart.

    Exit codes: 0 all laws hold but those with a known cause, 1 others are broken, 2 a mistake in what you gave.

    \b
    Examples:
      validate simulator
      validate simulator --gpu h100 --model llama-3.1-8b
      validate simulator --markdown docs/laws.md
    """
    from simulator.cli.progress import ProgressBar
    from validate.laws.known import why_broken
    from validate.laws.report import text, to_json
    from validate.laws.suite import check_all

    if page and (gpus or models):
        found = (*gpus, *models)[0]
        raise UserError(f"--markdown writes the page of all GPUs; expected no --gpu and no --model, found '{found}'")
    with ProgressBar("holding laws") as bar:
        report = check_all(gpus, models, bar)
    if page:
        _write_page(page, report)
    click.echo(json.dumps(to_json(report), indent=2, allow_nan=False) if as_json else text(report))
    if any(not why_broken(result.law, one.gpu) for one, result in report.broken()):
        ctx.exit(EXIT_BROKEN)


def _write_page(path: str, report: Report) -> None:
    from validate.laws.page import laws_page

    text = laws_page(report)
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"page '{path}' cannot be written: {error.strerror}") from None
    print(f"validate: wrote {path}", file=sys.stderr)
