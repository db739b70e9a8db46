"""What commands have in common when they answer: reports on a terminal or as text, lists, and what was asked."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from simulator.errors import UserError

if TYPE_CHECKING:
    from simulator.report.listing import Listing
    from simulator.report.table import Report


def given_options(ctx: click.Context) -> list[str]:
    """The options that stand on the command line, as they are called there."""
    parameters = [p for p in ctx.command.get_params(ctx) if isinstance(p, click.Option)]
    sources = {parameter.opts[0]: ctx.get_parameter_source(parameter.name) for parameter in parameters}
    return [name for name, source in sources.items() if source == ParameterSource.COMMANDLINE]


def _on_terminal() -> bool:
    """Whether somebody reads along; Python has no stdout where it was closed."""
    return sys.stdout is not None and sys.stdout.isatty()


def show_report(report: Report) -> None:
    """Print a report: in colour on a terminal, as plain text elsewhere."""
    if _on_terminal():
        from simulator.report.terminal import print_report

        print_report(report)
    else:
        from simulator.report.plain import render_plain

        print(render_plain(report), end="")


def show_list(what: str, as_json: bool, given: list[str]) -> None:
    """Print what is known of `what`: one of options.LISTS. UserError when more was asked, as `given` tells."""
    extra = [name for name in given if name not in ("--list", "--json")]
    if extra:
        raise UserError(f"--list simulates nothing, so it cannot be combined with {', '.join(extra)}")
    from simulator.report.json_out import rows_json
    from simulator.report.listing import render_listing

    listing = _listing(what)
    if as_json:
        print(rows_json(listing.objects))
    elif _on_terminal():
        from simulator.report.terminal import print_listing

        print_listing(listing)
    else:
        print(render_listing(listing), end="")


def _listing(what: str) -> Listing:
    from simulator.report import listing

    if what == "gpus":
        from simulator.device import list_devices
        from simulator.profile_choice import load_calibration

        return listing.list_gpus([(device, load_calibration(device)) for device in list_devices()])
    if what == "models":
        from simulator.model import list_models, load_model

        return listing.list_models([(summary, load_model(summary.name)) for summary in list_models()])
    if what == "traces":
        from simulator.workload.builtin_traces import list_traces

        return listing.list_traces(list_traces())
    from simulator.strategies import list_strategies

    return listing.list_strategies(list_strategies())
