"""The command `validate`: hold the simulator against measured runs and published figures."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from simulator.cli.exits import OneLineErrors
from simulator.errors import UserError
from simulator.report.paths import check_apart, check_writable

if TYPE_CHECKING:
    from validate.suite import Verdict

# Name -> module with a click command of that name.
SUBCOMMANDS = {
    "strategies": "validate.commands.strategies",
    "simulator": "validate.commands.simulator",
    "kernels": "validate.commands.kernels",
}
EXIT_FINDINGS = 1


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
@click.argument("runs", type=click.Path(), required=False)
@click.option("--profile", metavar="FILE", help="Calibration profile to use instead of the ones that ship.")
@click.option("--simulated", metavar="FILE", help="Judge another simulator: its figures for the same run ids.")
@click.option("--predictions", metavar="OUT.csv", help="Write one row per run: status, predictions, 90 % intervals.")
@click.option("--report", "folder", metavar="DIR", help="Write the verdict as one HTML page and as Markdown.")
@click.option("--self-test", is_flag=True, help="Test the suite itself: inject every class of fault into clean runs.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the self-test.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def validate(
    runs: str | None,
    profile: str | None,
    simulated: str | None,
    predictions: str | None,
    folder: str | None,
    self_test: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Tell a wrong simulator from a wrong measurement: hold every run of RUNS against its prediction.

    RUNS are measured-run records (docs/records.md), CSV or JSON. Each is predicted as it was configured, then checked
    in layers: provenance, configuration, workload, validity of the run, definitions, physical bounds, agreement of
    views, shape, error, extrapolation. A figure that an early layer refuses gets no error percentage; it gets the
    suspected class of mismatch (F1 to F14, docs/validation.md), the evidence, and what to check next. Status of a run:
    ok, extrapolated, refused: class, unsupported: reason.

    Exit code 0: no mismatch found, 1: findings, 2: bad input. A sub-command in the place of RUNS checks something
    else; a file of that name: ./strategies

    \b
    Examples:
      validate calibration/data/runs/edgereasoning.csv
      validate my_runs.csv --predictions predictions.csv --report report
      validate my_runs.csv --profile my_gpu.toml --json
      validate my_runs.csv --simulated other_simulator.csv
      validate --self-test
      validate simulator
    """
    if self_test:
        _self_test(runs, seed, as_json)
        return
    if runs is None:
        raise click.UsageError("Missing argument 'RUNS'", click.get_current_context())
    if predictions:
        check_writable("--predictions", predictions)
        check_apart({"--predictions": predictions}, {"RUNS": runs, "--profile": profile, "--simulated": simulated})
    verdict = _verdict(runs, profile, simulated)
    if predictions:
        from validate.predictions_file import write_predictions

        write_predictions(predictions, verdict)
    _show(verdict, runs, folder, as_json)
    if verdict.alarms:
        click.get_current_context().exit(EXIT_FINDINGS)


def _verdict(runs: str, profile: str | None, simulated: str | None) -> Verdict:
    from calibration.records import read_records
    from simulator.cli.progress import ProgressBar
    from validate.suite import evidence_of, run_checks

    records = read_records(runs)
    if not records:
        raise UserError(f"{runs}: no rows, expected one row per run")
    with ProgressBar("replaying runs") as bar:
        evidence = evidence_of(records, runs, profile, simulated, bar)
    return run_checks(evidence)


def _show(verdict: Verdict, runs: str, folder: str | None, as_json: bool) -> None:
    from simulator.report.json_out import object_json
    from validate.report import text
    from validate.summary import summary

    report = summary(verdict)
    if folder:
        from validate.page import write_page

        report["page"] = [str(path) for path in write_page(folder, verdict, report)]
    click.echo(object_json(report, rows="findings") if as_json else text(report))


def _self_test(runs: str | None, seed: int, as_json: bool) -> None:
    from simulator.cli.progress import ProgressBar
    from simulator.report.json_out import object_json
    from validate.self_test import run_self_test, self_test_text

    if runs is not None:
        raise UserError(f"--self-test takes no run file, found '{runs}'; it uses the runs that ship")
    with ProgressBar("injected faults") as bar:
        outcome = run_self_test(seed, bar)
    click.echo(object_json(outcome.to_dict(), rows="matrix") if as_json else self_test_text(outcome))
    if not outcome.passed:
        click.get_current_context().exit(EXIT_FINDINGS)


def main() -> None:
    """Entry point of the console script."""
    validate(prog_name="validate")
