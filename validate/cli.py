"""The command `validate`: hold the simulator against measured runs."""

from __future__ import annotations

import json

import click

from simulator.cli.exits import OneLineErrors


class Validate(OneLineErrors, click.Command):
    """The program, with one-line errors."""


@click.command(cls=Validate, context_settings={"help_option_names": ["-h", "--help"]})
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

    \b
    Examples:
      validate calibration/data/edgereasoning.csv
      validate my_runs.csv --predictions predictions.csv
      validate my_runs.csv --profile my_gpu.toml --json
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
