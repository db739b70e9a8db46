"""`simulate`: what a strategy costs on a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simulator.cli.command import EXAMPLES, Program, named_strategy
from simulator.cli.explain import (
    PLOT_OPTION,
    check_explain_plot,
    explanation_of,
    show_explanation,
    with_explanation,
    written_plot,
)
from simulator.cli.options import ENGINE_SETTINGS, chosen, device_choices, missing_options
from simulator.cli.progress import ProgressBar
from simulator.cli.show import given_options, show_list, show_report
from simulator.cli.strategy_options import GROUPS, add_options, given_parameters
from simulator.errors import UserError
from simulator.result import SimulationResult
from simulator.scenario import Scenario, installed_version, simulate_scenario
from simulator.strategies import Strategy

if TYPE_CHECKING:
    from simulator.planning.explain.explanation import Explanation

SHORT_HELP = """Usage: simulate --gpu NAME --strategy NAME [OPTIONS]

What a test-time-compute strategy costs on a GPU that you may not own: time, tokens, memory, energy, money.

  simulate --gpu orin --strategy pdr       try it
  simulate traffic --help                  what happens when requests arrive at a server
  simulate --list gpus                     also: --list models, --list strategies, --list traces
  simulate --strategy pdr --help           what a strategy does, and what can be set
  simulate --help                          all options, with examples
"""


def _show_version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        click.echo(f"simulate (tokenflight) {installed_version()}")
        ctx.exit()


@click.group(
    cls=Program,
    groups=GROUPS,
    examples=EXAMPLES,
    invoke_without_command=True,
    context_settings={"max_content_width": 110, "help_option_names": ["-h", "--help"]},
    subcommand_metavar="[COMMAND]",
)
@add_options
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version, exit."
)
@click.pass_context
def simulate(ctx: click.Context, **values: Any) -> None:
    """Simulate an LLM inference strategy on a GPU that you may not own.

    Or, with a command behind it, something else: `simulate traffic` answers what happens when requests arrive,
    `simulate import` turns an agent's log into a schedule that can fly.

    Prints wall time with its 90 % interval, tokens, TTFT and TPOT, memory, power, energy, cost, where the time goes,
    and every assumption made. Names that are not known get the nearest known ones. Exit codes: 0 done, 2 a mistake in
    what you gave (one sentence on stderr), 130 interrupted.
    """
    given = given_options(ctx)
    if ctx.invoked_subcommand is not None:
        if given:
            name = ctx.invoked_subcommand
            raise UserError(f"{given[0]} stands before '{name}'; expected it behind: simulate {name} {given[0]} ...")
        return
    if not given:
        click.echo(SHORT_HELP, nl=False)
        return
    if values["what"] is not None:
        show_list(values["what"], values["as_json"], given)
        return
    _simulate(values, named_strategy(ctx))


def _simulate(values: dict[str, Any], strategy: Strategy | None) -> None:
    """Fly and report."""
    scenario = _scenario(values, strategy)
    _check_outputs(values)  # before minutes are spent on simulating
    with ProgressBar("repetitions") as bar:
        result = simulate_scenario(scenario, progress=bar)
    explanation = explanation_of(values, "strategy", scenario, result)
    written = [values["save_schedule"]] if values["save_schedule"] is not None else []
    if values["plot"] is not None:
        from simulator.report.gantt import save_gantt

        written.append(save_gantt(result, values["plot"]))
    written += written_plot(explanation, values["explain_plot"])
    for path in written:
        print(f"simulate: wrote {path}", file=sys.stderr)
    _show_result(result, explanation, values["as_json"])


def _check_outputs(values: dict[str, Any]) -> None:
    """What can be told about output files before there is anything to write. UserError when it is bad."""
    outputs = {
        "--plot": values["plot"],
        "--save-schedule": values["save_schedule"],
        PLOT_OPTION: values["explain_plot"],
    }
    outputs = {option: path for option, path in outputs.items() if path is not None}
    if not outputs:
        return
    from simulator.report.gantt import check_plot_path
    from simulator.report.paths import check_apart, check_writable

    for option, path in outputs.items():
        check_writable(option, path)
    if values["plot"] is not None:
        check_plot_path(values["plot"])
    check_explain_plot(values["explain_plot"])
    inputs = ("gpu", "model", "calibration", "strategy", "schedule", "question_lengths")
    check_apart(outputs, {f"--{name.replace('_', '-')}": _file(values[name]) for name in inputs})


def _file(name: str | None) -> str | None:
    """The file of FILE.py:FUNCTION or FILE.csv:COLUMN, and whatever else a file may be named by."""
    return name if name is None or Path(name).is_file() else name.rpartition(":")[0] or name


def _scenario(values: dict[str, Any], strategy: Strategy | None) -> Scenario:
    """The options as a scenario. UserError when something is missing or contradicts itself."""
    if strategy is not None and values["schedule"] is not None:
        raise UserError("--strategy and --schedule both say what flies: give one of them")
    hints = {"gpu": "see: simulate --list gpus", "strategy": "see: simulate --list strategies"}
    if values["schedule"] is not None:
        del hints["strategy"]
    missing_options(values, hints)
    return Scenario(
        **device_choices(values),
        **_extras(values),
        strategy=values["strategy"],
        engine_settings=chosen(values, ENGINE_SETTINGS),
        repetitions=values["repetitions"],
        strategy_parameters=given_parameters(values, strategy),
    )


def _extras(values: dict[str, Any]) -> dict[str, Any]:
    """What was asked for beyond one question and one model, as fields of a scenario."""
    names = ("schedule", "save_schedule", "replicas", "questions", "question_lengths", "concurrency")
    found = chosen(values, names)
    if values["roles"]:
        found["roles"] = values["roles"]
    if values["idealized"]:
        found["idealized"] = True
    return found


def _show_result(result: SimulationResult, explanation: Explanation | None, as_json: bool) -> None:
    if as_json:
        from simulator.report.json_out import object_json

        print(object_json(with_explanation(result.to_dict(), explanation), rows="flights"))
        return
    from simulator.report.table import build_report

    show_report(build_report(result))
    show_explanation(explanation)


def main() -> None:
    """Entry point of the `simulate` command."""
    simulate(prog_name="simulate")


if __name__ == "__main__":
    main()
