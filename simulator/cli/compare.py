"""`simulate compare`: several strategies, models, precisions or GPUs on one task."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from simulator.cli.command import SubCommand
from simulator.cli.options import OUTPUT, decorated, option
from simulator.cli.progress import ProgressBar
from simulator.cli.strategy_options import GROUPS as FLIGHT_GROUPS
from simulator.errors import UserError

if TYPE_CHECKING:
    from simulator.planning.compare import Comparison
    from simulator.planning.study import Study

EXAMPLES = """
Examples:
  Chain of thought against sixteen votes and parallel-distill-refine, in the 30 W mode of an Orin:
    simulate compare --gpu orin --power-mode 30W --model qwen3-4b single self_consistency,samples=16 pdr
  One strategy on three GPUs; differences are to the second candidate; a picture:
    simulate compare --strategy pdr --model qwen3-8b gpu=h100 name=L40S,gpu=l40s gpu=orin --against L40S \\
      --plot front.png
  Samples are correct with chances that are spread as Beta(3, 2) over questions: which vote is best within limits?
    simulate compare --gpu h100 --model qwen3-8b --success beta:3:2 single self_consistency,samples=4 \\
      self_consistency,samples=16 --within wall_s=30 --within energy_j=9000
  Accuracies that a paper prints:
    simulate compare --gpu h100 --model qwen3-32b --accuracy scale --benchmark AIME25 \\
      single self_consistency,samples=8 scale
  The same kept in a file; options that stand beside it count before it:
    simulate compare study.toml --gpu l40s --json
"""

_COMPARISON, _ACCURACY = "What is compared", "Accuracy (nothing is said of it unless you do)"
_ACCURACY_OPTIONS = ("accuracy", "benchmark", "success", "wrong_answers", "verifier")


def _options() -> list[Callable]:
    return [
        option(
            _COMPARISON,
            "--candidate",
            "candidates",
            multiple=True,
            metavar="NAME=VALUE,...",
            help="A candidate, the same as a word without an option in front: settings parted by commas, called as the "
            "options of simulate; a word without '=' is its strategy; name=... is what it is called. May be repeated.",
        ),
        option(
            _COMPARISON, "--against", metavar="NAME", help="Differences are to this candidate.  [default: the first]"
        ),
        option(
            _COMPARISON,
            "--within",
            multiple=True,
            metavar="FIGURE=VALUE",
            help="A limit that the best candidate must keep: wall_s, energy_j, cost_usd, memory_byte, power_w (at "
            "most), accuracy (at least), in SI units. May be repeated.",
        ),
        option(
            _COMPARISON, "--best", metavar="FIGURE", help="What the best is best in.  [default: accuracy, else wall_s]"
        ),
        option(
            _ACCURACY,
            "--accuracy",
            metavar="X|TABLE",
            help="A number from 0 to 1, or a CSV file with a column accuracy and columns called as settings, or a "
            "table that ships: deepprune, dparallel, scale, threadweaver.",
        ),
        option(_ACCURACY, "--benchmark", metavar="NAME", help="Which benchmark of the table."),
        option(
            _ACCURACY,
            "--success",
            metavar="P|beta:A:B|FILE",
            help="How likely a single sample is correct: votes, coverage and verified answers follow. FILE.csv has the "
            "columns question,p or question,n,c or question,answer,correct,count.",
        ),
        option(
            _ACCURACY,
            "--wrong-answers",
            metavar="N",
            help="Over how many answers wrong samples spread evenly.  [default: 1, all agree: a vote's worst case]",
        ),
        option(
            _ACCURACY,
            "--verifier",
            metavar="FN:FP",
            help="How the judge of best_of_n errs: shares of correct samples rejected and of wrong ones accepted; "
            "'perfect' is coverage.",
        ),
        option(
            OUTPUT,
            "--set",
            "settings",
            multiple=True,
            metavar="NAME=VALUE",
            help="A setting of all candidates by its name. May be repeated.",
        ),
        option(OUTPUT, "--json", "as_json", is_flag=True, help="Print everything as JSON."),
        option(OUTPUT, "--csv", "csv_path", metavar="FILE", help="Write one row per candidate."),
        option(OUTPUT, "--plot", metavar="FILE", help="Draw the fronts: .png, .svg or .pdf."),
    ]


def _add_options(command: Callable) -> Callable:
    return decorated(command, _options())


class CompareCommand(SubCommand):
    """Takes, beside its own options, those of `simulate` that say what flies: they are shared by all candidates."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Own options, then the shared ones."""
        from simulator.cli.settings import options_of
        from simulator.cli.strategy_options import parameter_options

        own = super().get_params(ctx)
        if _SHARED not in ctx.meta:
            taken = [word for each in own for word in (*each.opts, *each.secondary_opts)]
            shared = [each for each in dict.fromkeys(options_of("strategy").values()) if each.opts[0] not in taken]
            taken += [word for each in shared for word in (*each.opts, *each.secondary_opts)]
            ctx.meta[_SHARED] = [*shared, *parameter_options(None, taken)]
        return [*own, *ctx.meta[_SHARED]]


_SHARED = f"{__name__}.shared"


@click.command(
    "compare",
    cls=CompareCommand,
    groups=(_COMPARISON, _ACCURACY, *FLIGHT_GROUPS),
    examples=EXAMPLES,
    short_help="Several strategies, models, precisions or GPUs on one task.",
    context_settings={"max_content_width": 110, "help_option_names": ["-h", "--help"]},
    options_metavar="[SHARED OPTIONS]",
)
@click.argument("words", nargs=-1, metavar="[STUDY.toml | CANDIDATE CANDIDATE ...]")
@_add_options
@click.pass_context
def compare(ctx: click.Context, words: tuple[str, ...], **values: Any) -> None:
    """Compare candidates on one task: strategies, models, precisions, power modes or GPUs.

    A candidate is a strategy and settings, as pdr,width=8, or settings alone, as gpu=orin,weights=int4. Options of
    simulate hold for all of them. Prints time, energy, cost, memory and tokens with 90 % intervals, differences with
    theirs ("no difference" where one is smaller than its interval), who is on the Pareto front, and what is best
    within limits.
    """
    if not words and not any(ctx.get_parameter_source(p.name) == ParameterSource.COMMANDLINE for p in _all(ctx)):
        click.echo(ctx.get_usage() + "\n\nTry: simulate compare --help")
        return
    study = _study(ctx, words, values)
    _check_outputs(words, values)
    from simulator.planning import compare as planning

    with ProgressBar("candidates") as bar:
        comparison = planning.compare(study, progress=bar)
    _show(comparison, values)


def _all(ctx: click.Context) -> list[click.Parameter]:
    return ctx.command.get_params(ctx)


def _study(ctx: click.Context, words: tuple[str, ...], values: Mapping[str, Any]) -> Study:
    """What the command line asks for. UserError when it contradicts itself."""
    from simulator.planning.study import build_study, parse_words, read_study
    from simulator.planning.within import split_limit

    shared = _shared(ctx, values)
    limits = tuple(split_limit(text) for text in values["within"])
    choice = {"within": limits, "against": values["against"], "best": values["best"]}
    files = [word for word in words if word.lower().endswith(".toml") and "=" not in word]
    candidates = [*(word for word in words if word not in files), *values["candidates"]]
    if not files:
        return build_study(shared, [parse_words(text) for text in candidates], **choice)
    if len(files) > 1 or candidates:
        extra = [*files[1:], *candidates][0]
        raise UserError(f"'{extra}' stands beside the study '{files[0]}'; expected the candidates in the file alone")
    return read_study(files[0], shared, **choice)


def _shared(ctx: click.Context, values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of all candidates that stand on the command line, by name."""
    found = {name: values[name] for name in _ACCURACY_OPTIONS if values[name] is not None}
    for each in ctx.meta[_SHARED]:
        if ctx.get_parameter_source(each.name) == ParameterSource.COMMANDLINE:
            value = values[each.name]
            value = " ".join(value) if isinstance(value, tuple) else value
            found[each.opts[0].removeprefix("--").replace("-", "_")] = value
    for text in values["settings"]:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UserError(f"--set {text}: expected NAME=VALUE, as: --set width=4")
        if name.strip().replace("-", "_") in found:
            raise UserError(f"--set {text}: setting '{name.strip()}' is given twice")
        found[name.strip().replace("-", "_")] = value
    return found


def _check_outputs(words: tuple[str, ...], values: Mapping[str, Any]) -> None:
    """What can be told about output files before anything is simulated."""
    from simulator.report.gantt import check_plot_path
    from simulator.report.paths import check_apart, check_writable

    outputs = {"--csv": values["csv_path"], "--plot": values["plot"]}
    outputs = {option: path for option, path in outputs.items() if path is not None}
    for name, path in outputs.items():
        check_writable(name, path)
    if values["plot"] is not None:
        check_plot_path(values["plot"])
    inputs = {"the study": next((word for word in words if Path(word).is_file()), None)}
    inputs |= {f"--{name}": values[name] for name in ("accuracy", "success")}
    check_apart(outputs, inputs)


def _show(comparison: Comparison, values: Mapping[str, Any]) -> None:
    written = []
    if values["csv_path"] is not None:
        from simulator.report.compare_csv import write_comparison

        written.append(write_comparison(comparison, values["csv_path"]))
    if values["plot"] is not None:
        from simulator.report.compare_plot import save_comparison

        written.append(save_comparison(comparison, values["plot"]))
    for path in written:
        print(f"simulate: wrote {path}", file=sys.stderr)
    if values["as_json"]:
        from simulator.report.json_out import object_json

        print(object_json(comparison.to_dict(), rows="candidates"))
        return
    from simulator.report.compare_table import render_comparison

    print(render_comparison(comparison), end="")
