"""`simulate sweep`: the same question at many settings, as a table."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from simulator.cli.command import SubCommand, _named_strategy
from simulator.cli.options import OUTPUT, AtLeast, GroupedOption, decorated, option
from simulator.cli.progress import ProgressBar
from simulator.errors import UserError

if TYPE_CHECKING:
    from simulator.planning.store import Row, Store
    from simulator.planning.sweep import Sweep
    from simulator.report.sweep_plot import Axes

BACKENDS = ("loky", "dask", "ray")  # of simulator.planning.backends, which is slow to load
_VARIES, _RUNS = (
    "What varies (VALUES: orin,l4 or 1..32, 1..32:4, 1..64*2; several in a row; parted by ; where one has a comma)",
    "Where it runs",
)
_PARAMETERS = f"{__name__}.parameters"  # what the context of a command line carries
SHOWN_REASONS = 5
EXIT_SOME_FAILED = 1
EXAMPLES = """
Every option of `simulate` holds for all points; with --traffic, those of `simulate traffic`. Rows come in the order of
the points; --out that exists goes on where it stopped, if nothing but what varies has changed.

Exit codes: 0 done, 1 some points failed (their rows say why), 2 a mistake in what you gave, 130 interrupted.

Examples:
  Parallel-distill-refine, eight widths on three GPUs, as CSV; then a figure of the same file:
    simulate sweep --strategy pdr --vary gpu=orin,l4,h100 --vary width=1..8 --out pdr.csv
    simulate sweep --strategy pdr --vary gpu=orin,l4,h100 --vary width=1..8 --out pdr.csv \\
      --plot pdr.png --x width --y wall_s_p50 --by gpu
  A server under rising load, two batch limits:
    simulate sweep --traffic --gpu h100 --model llama-3.1-8b --input 1024 --output 256 --requests 500 \\
      --vary rate=1..64*2 --vary max_num_seqs=64,256 --out load.csv --plot load.png --y tpot_s_p99
  Points of your own, one per row of a CSV file with names of settings on top:
    simulate sweep --gpu orin --strategy pdr --vary-list points.csv
  On a Dask or Ray cluster that is there already:
    simulate sweep --strategy pdr --vary gpu=orin,l4,h100 --vary width=1..64 --out pdr.csv \\
      --backend dask --address tcp://scheduler:8786
"""


class SweepCommand(SubCommand):
    """A command that also takes every option of what it repeats."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, with the options of `simulate` or of `simulate traffic`."""
        ctx.meta[_PARAMETERS] = _fixed_options("traffic" if "--traffic" in args else "strategy", args)
        return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Its own options, and those of what it repeats."""
        return [*super().get_params(ctx), *ctx.meta.get(_PARAMETERS, ())]


class _Fixed(GroupedOption):
    """An option of the repeated command; its help stands there."""

    def get_help_record(self, ctx: click.Context) -> None:
        return None


def _fixed_options(kind: str, args: Sequence[str]) -> list[click.Parameter]:
    """The options of the command that is repeated, those of the named strategy included, without their help."""
    from simulator.cli.settings import options_of
    from simulator.cli.strategy_options import parameter_options
    from simulator.strategies import get_strategy

    found: list[click.Parameter] = list(dict.fromkeys(options_of(kind).values()))
    if kind == "strategy":
        name = _named_strategy(args)
        taken = [word for each in found for word in each.opts]
        found += parameter_options(get_strategy(name) if name is not None else None, taken)
        found.append(_Fixed(["--set", "settings"], multiple=True))
    return found


def _options() -> list:
    return [
        option(
            _VARIES,
            "--traffic",
            is_flag=True,
            help="Sweep over `simulate traffic` instead of strategies.",
        ),
        option(
            _VARIES,
            "--vary",
            multiple=True,
            metavar="NAME=VALUES",
            help="A setting and its values: an option without its dashes, or a parameter of the strategy. Again for a "
            "grid.",
        ),
        option(
            _VARIES,
            "--vary-list",
            metavar="FILE",
            help="Points one by one: a CSV file with names of settings in its first row; an empty cell sets nothing.",
        ),
        option(_RUNS, "--jobs", type=AtLeast(1, 4096), metavar="N", help="Processes.  [default: one per core]"),
        option(
            _RUNS,
            "--backend",
            type=click.Choice(BACKENDS),
            default="loky",
            help="Processes of this machine, or a cluster; the rows are the same.  [default: loky]",
        ),
        option(
            _RUNS,
            "--address",
            metavar="ADDRESS",
            help="Of a Dask scheduler (tcp://host:8786) or Ray cluster (auto, host:6379).  [default: one of its own on "
            "this machine]",
        ),
        option(
            OUTPUT,
            "--out",
            metavar="FILE",
            help="Table as .csv or .parquet; goes on where an earlier run stopped.  [default: CSV on stdout]",
        ),
        option(OUTPUT, "--json", "as_json", is_flag=True, help="The rows as JSON on stdout."),
        option(OUTPUT, "--plot", metavar="FILE", help="Figure as .png, .svg or .pdf; 90 % intervals as bands."),
        option(OUTPUT, "--x", metavar="NAME", help="Setting on the x axis.  [default: the first numbers that vary]"),
        option(
            OUTPUT,
            "--y",
            multiple=True,
            metavar="NAME",
            help="Figure on the y axis; again for a panel more.  [default: wall_s_p50, of traffic e2e_s_p50]",
        ),
        option(OUTPUT, "--by", metavar="NAME", help="Setting with a line for each value.  [default: what else varies]"),
    ]


@click.command(
    "sweep",
    cls=SweepCommand,
    groups=(_VARIES, _RUNS, OUTPUT),
    examples=EXAMPLES,
    short_help="The same question at many settings, as a table and a figure.",
    context_settings={"max_content_width": 110, "help_option_names": ["-h", "--help"]},
    options_metavar="--vary NAME=VALUES [--vary ...] [OPTIONS OF SIMULATE] [OPTIONS]",
)
@(lambda command: decorated(command, _options()))
@click.pass_context
def sweep(ctx: click.Context, **values: Any) -> int:
    """Simulate every combination of settings on all cores or on a cluster: one row per point, with its settings,
    figures and 90 % intervals.

    A point that cannot be simulated is a row with the reason in it. The same sweep gives the same bytes wherever it
    runs.
    """
    from simulator.planning.store import Store
    from simulator.planning.sweep import build_sweep, failures, run_sweep

    if not values["vary"] and values["vary_list"] is None:
        click.echo(ctx.get_usage() + "\n\nTry: simulate sweep --help")
        return 0
    kind = "traffic" if values["traffic"] else "strategy"
    found = build_sweep(kind, _fixed_settings(ctx), *_varied(values))
    axes = _check_outputs(values, found)
    where = {name: values[name] for name in ("backend", "jobs", "address")}
    with Store(values["out"], found.columns, found.names) as store:
        try:
            with ProgressBar("points") as bar:
                rows, tracebacks = run_sweep(found, store, **where, progress=bar)
        except KeyboardInterrupt:
            _say_kept(store, len(found.points), values["out"])
            raise
    _show(rows, store, found, values, axes)
    return _exit_code(failures(rows), len(rows), tracebacks)


def _fixed_settings(ctx: click.Context) -> dict[str, Any]:
    """What holds for every point, by setting. UserError for a parameter that is given twice."""
    found: dict[str, Any] = {}
    for each in ctx.meta[_PARAMETERS]:
        if ctx.get_parameter_source(each.name) is not ParameterSource.COMMANDLINE or each.name == "settings":
            continue
        found[each.opts[0].removeprefix("--").replace("-", "_")] = ctx.params[each.name]
    for text in ctx.params.get("settings") or ():
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UserError(f"--set {text}: expected NAME=VALUE, as: --set width=4")
        if name.strip().replace("-", "_") in found:
            raise UserError(f"--set {text}: '{name.strip()}' is given twice")
        found[name.strip().replace("-", "_")] = value
    return found


def _varied(values: Mapping[str, Any]) -> tuple[dict[str, Sequence[str]], list[dict[str, str]]]:
    """(values by name, listed points) of --vary and --vary-list. UserError for a name that is varied twice."""
    from simulator.planning.vary import parse_vary, read_points

    axes: dict[str, Sequence[str]] = {}
    for text in values["vary"]:
        name, found = parse_vary(text)
        if name in axes:
            raise UserError(f"--vary {name} is given twice; its values go in a row: --vary {name}=A,B")
        axes[name] = found
    return axes, [{}] if values["vary_list"] is None else read_points(values["vary_list"])


def _check_outputs(values: Mapping[str, Any], sweep: Sweep) -> Axes | None:
    """What can be told about output before anything runs; what the axes of the figure show, if there is one."""
    from simulator.report.paths import check_apart, check_writable

    outputs = {f"--{name}": values[name] for name in ("out", "plot") if values[name] is not None}
    for flag, path in outputs.items():
        check_writable(flag, path)
    check_apart(outputs, {"--vary-list": values["vary_list"]})
    if values["out"] is not None and not re.search(r"\.(csv|parquet)$", values["out"], re.IGNORECASE):
        raise UserError(f"--out {values['out']}: expected a file name ending in .csv or .parquet")
    if values["out"] is not None and values["as_json"]:
        raise UserError("--json and --out both say where the rows go; expected one of the two")
    if values["plot"] is None:
        given = [f"--{name}" for name in ("x", "y", "by") if values[name]]
        if given:
            raise UserError(f"{given[0]} says what --plot shows, and no figure is asked for")
        return None
    from simulator.report.gantt import check_plot_path
    from simulator.report.sweep_plot import choose_axes

    check_plot_path(values["plot"])
    return choose_axes(sweep, values["x"], values["y"], values["by"])


def _show(rows: Sequence[Row], store: Store, sweep: Sweep, values: Mapping[str, Any], axes: Axes | None) -> None:
    """Write or print what was asked for."""
    if values["as_json"]:
        from simulator.planning.store import values as columns
        from simulator.report.json_out import object_json

        table = columns(rows, sweep.names)
        objects = [dict(zip(table, row)) for row in zip(*table.values())]
        click.echo(object_json({"kind": sweep.kind, "fixed": dict(sweep.fixed), "rows": objects}, rows="rows"))
    elif values["out"] is None:
        click.echo(store.text(rows), nl=False)
    written = [values["out"]] if values["out"] is not None else []
    if axes is not None:
        from simulator.report.sweep_plot import save_sweep_figure

        written.append(save_sweep_figure(rows, sweep, axes, values["plot"]))
    for path in written:
        print(f"simulate: wrote {path}", file=sys.stderr)


def _say_kept(store: Store, total: int, out: str | None) -> None:
    kept = (
        f"{len(store.rows):,} rows are in {out}; the same command goes on" if out else "nothing was kept, without --out"
    )
    print(f"simulate: interrupted: {kept} ({total:,} points)", file=sys.stderr)


def _exit_code(failed: Sequence[Row], total: int, tracebacks: Sequence[str]) -> int:
    """0, or 1 when some points failed; why is told on stderr, each reason once."""
    if not failed:
        return 0
    reasons = Counter(row["reason"] for row in failed)
    print(f"simulate: {len(failed):,} of {total:,} points failed:", file=sys.stderr)
    for reason, count in reasons.most_common(SHOWN_REASONS):
        print(f"  {count:,} x {reason}", file=sys.stderr)
    if len(reasons) > SHOWN_REASONS:
        print(f"  and {len(reasons) - SHOWN_REASONS:,} other reasons, in column 'reason'", file=sys.stderr)
    if tracebacks:
        print(tracebacks[0], file=sys.stderr, end="")
    return EXIT_SOME_FAILED
