"""The command `validate`: hold the simulator against measured runs and published figures."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

import click

from simulator.cli.exits import OneLineErrors

# Name -> module with a click command of that name.
SUBCOMMANDS = {"strategies": "validate.commands.strategies"}


class RunsOrCommand(click.Group):
    """A group whose own argument is RUNS: the first word names a sub-command, or everything is about RUNS."""

    allow_extra_args = False
    allow_interspersed_args = True

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return getattr(import_module(SUBCOMMANDS[name]), name) if name in SUBCOMMANDS else None

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """The context of the sub-command that the first word names; else that of this command."""
        if not args or args[0] not in SUBCOMMANDS:
            return super().make_context(info_name, args, parent, **extra)
        # Not of this command: its RUNS would stand in the usage line of the sub-command.
        above = click.Context(click.Command(info_name), info_name=info_name, parent=parent)
        command = self.get_command(above, args[0])
        return command.make_context(args[0], args[1:], parent=above, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Without a word about sub-commands, which take the place of RUNS and have a list of their own below."""
        return click.Command.collect_usage_pieces(self, ctx)


class Validate(OneLineErrors, RunsOrCommand):
    """The program, with one-line errors."""


@click.group(cls=Validate, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("runs", type=click.Path())
@click.option("--profile", metavar="FILE", help="Calibration profile to use instead of the ones that ship.")
@click.option("--predictions", metavar="OUT.csv", help="Write one row per run: status, predictions, 90 % intervals.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def validate(runs: str, profile: str | None, predictions: str | None, as_json: bool) -> None:
    """Predict every run of RUNS (measured-run records, see docs/records.md) and compare.

    Prints error statistics per GPU, model, load and metric: bias, median, mean and 90th percentile with n, and how
    often the measured value lies inside the stated 90 % interval. Rows that the profile was fitted on are counted
    apart from new ones; rows flagged `suspect:` are shown but not judged. A run that this version cannot simulate
    gets the status `unsupported: reason`, never a guess.

    A sub-command in the place of RUNS checks something else. A file of that name: ./strategies

    \b
    Examples:
      validate calibration/data/runs/edgereasoning.csv
      validate my_runs.csv --predictions predictions.csv
      validate my_runs.csv --profile my_gpu.toml --json
      validate strategies
    """
    from calibration.records import read_records
    from calibration.vendored import fitted_run_ids
    from simulator.cli.progress import ProgressBar
    from validate.predict import Predictor
    from validate.report import summary, text, write_predictions

    records = read_records(runs)
    predictor = Predictor(profile)
    with ProgressBar("replaying runs") as bar:
        found = predictor.predict_all(records, bar)
    if predictions:
        write_predictions(predictions, found)
    report = summary(found, predictor.profiles, fitted_run_ids(records, predictor.profiles.values()))
    click.echo(json.dumps(report, indent=2, allow_nan=False) if as_json else text(report, runs))


def main() -> None:
    """Entry point of the console script."""
    validate(prog_name="validate")
