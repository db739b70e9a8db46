"""`simulate import`: a log of requests, as an agent leaves it, turned into a schedule that can fly on any GPU."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from simulator.cli.command import SubCommand
from simulator.cli.options import ABOVE_ZERO, OUTPUT, option

if TYPE_CHECKING:
    from simulator.schedule.agent_logs.importer import Imported

_READING = "What is made of the log"
EXAMPLES = """
Examples:
  What is in a log, and what would be assumed about it; nothing is written:
    simulate import agent.jsonl
  A schedule of it, with pauses over 5 s cut to 5 s; then what it would cost on another GPU:
    simulate import agent.jsonl -o agent.json --max-gap 5
    simulate --gpu orin --schedule agent.json

The log has one JSON object per request: a request and its answer as {"request": ..., "response": ..., "start_time":
..., "end_time": ...}, or one object with times, 'model', 'messages' and 'usage', or saved answers with 'created' and
'usage'. Its texts are compared with each other and are written nowhere.
"""


@click.command(
    "import",
    cls=SubCommand,
    groups=(_READING, OUTPUT),
    examples=EXAMPLES,
    short_help="A schedule from an agent's log of requests.",
    context_settings={"max_content_width": 110, "help_option_names": ["-h", "--help"]},
    options_metavar="LOG.jsonl [-o SCHEDULE.json] [OPTIONS]",
)
@click.argument("log", metavar="", required=False)
@option(
    _READING,
    "--max-gap",
    type=ABOVE_ZERO,
    metavar="SECONDS",
    help="Longest time between requests; longer gaps, in which somebody slept, are shortened to it.  [default: as long "
    "as they were]",
)
@option(OUTPUT, "-o", "--output", metavar="FILE", help="Write the schedule there.  [default: only say what was found]")
@option(OUTPUT, "--json", "as_json", is_flag=True, help="What was found and assumed as one JSON object.")
@click.pass_context
def import_log(ctx: click.Context, log: str | None, **values: Any) -> None:
    """Turn a log of requests to a model (OpenAI's format and its relatives) into a schedule.

    A request depends on the latest ones that had ended when it started; the time between them is an external wait;
    requests that overlap run in parallel; prompts share what their messages have in common. Prints what was found
    and everything that is assumed.
    """
    if log is None:
        click.echo(ctx.get_usage() + "\n\nTry: simulate import --help")
        return
    from simulator.schedule.agent_logs.importer import import_log as read

    target = values["output"]
    if target is not None:
        from simulator.report.paths import check_apart, check_writable

        check_writable("--output", target)
        check_apart({"--output": target}, {"LOG": log})
    imported = read(log, values["max_gap"])
    if target is not None:
        from simulator.schedule.files.schedule import check_sheet, write_schedule

        check_sheet(imported.sheet, target)
        target = str(write_schedule(imported.sheet, target))
    _show(imported, log, target, values["as_json"])


def _show(imported: Imported, log: str, target: str | None, as_json: bool) -> None:
    if as_json:
        from simulator.report.json_out import object_json

        facts = {"log": log, **imported.found, "assumptions": list(imported.assumptions), "schedule": target}
        click.echo(object_json(facts, rows=""))
        return
    from simulator.report.plain import columns

    rows = [(name, value) for name, value in _rows(imported.found) if value]
    click.echo(f"{log}: {imported.found['requests']:,} requests\n")
    click.echo("\n".join(f"  {line}" for line in columns(rows)))
    click.echo("\nAssumptions")
    click.echo("\n".join(f"  - {text}" for text in imported.assumptions))
    if target is None:
        click.echo("\nNothing was written; -o FILE writes the schedule.")
    else:
        click.echo(f"\nWrote {target}; next: simulate --gpu h100 --schedule {shlex.quote(target)}")


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values of what was found; what is not there is left out."""
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in found["left_out"].items() if count)
    models = found["models"]
    shared = found["shared_by"]
    how = ", ".join(f"{shared[kind]:,} by {kind}" for kind in ("messages", "growth") if shared[kind])
    rows = [
        ("left out", left_out),
        ("models", ", ".join(f"{name or 'not named'} ({role})" for role, name in models.items())),
        ("time", f"{found['span_s']:,.1f} s, at most {found['most_at_once']:,} requests at once"),
        ("calls", f"{found['calls']:,}"),
        ("waits", f"{found['waits']:,}, {found['waits_s']:,.1f} s in all" if found["waits"] else "none"),
        ("tokens read", f"{found['prompt_tok']:,}"),
        ("shared", f"{found['shared_tok']:,} of them with earlier requests{f' ({how})' if how else ''}"),
        ("tokens written", f"{found['output_tok']:,}"),
    ]
    if found["cached_tok"] is not None:
        beyond = found["cached_beyond_shared"]
        odd = f"; in {beyond:,} requests it says more than is shared here" if beyond else ""
        rows.append(("check", f"the log says that {found['cached_tok']:,} tokens came from a cache{odd}"))
    return rows
