"""The command `calibrate`: fit profiles to measured runs. (`collect` and `import` are further sub-commands to come.)"""

from __future__ import annotations

import shlex
import sys
from collections import Counter

import click

from simulator.cli.exits import OneLineErrors
from simulator.errors import UserError


class Calibrate(OneLineErrors, click.Group):
    """The program, with one-line errors."""


@click.group(cls=Calibrate, context_settings={"help_option_names": ["-h", "--help"]})
def calibrate() -> None:
    """Fit the simulator to measured runs.

    \b
    Examples:
      calibrate fit calibration/data/edgereasoning.csv --gpu orin --out my-orin.toml
      simulate --gpu orin --strategy pdr --calibration my-orin.toml
      validate runs.csv --profile my-orin.toml
    """


@calibrate.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path())
@click.option("--gpu", required=True, metavar="NAME", help="GPU whose rows to fit.")
@click.option("--out", required=True, metavar="FILE.toml", help="Where to write the profile.")
@click.option("--engine", default="vllm", show_default=True, help="Engine family whose rows to fit.")
@click.option("--prior", metavar="FILE.toml", help="Profile to start from. Default: the defaults of the GPU's family.")
@click.option("--overwrite", is_flag=True, help="Replace --out if it exists.")
def fit(runs: tuple[str, ...], gpu: str, out: str, engine: str, prior: str | None, overwrite: bool) -> None:
    """Fit a profile to RUNS (measured-run records, see docs/records.md).

    Robust bounded least squares on the logarithm of predicted / measured, with a prior for every parameter, once on
    all rows and once with each model left out. Rows flagged `suspect:` are not used. Parameters that the data do not
    narrow are named and stay within their prior.
    """
    from pathlib import Path

    from calibration.fit_profile import fit_profile
    from calibration.records import read_records
    from calibration.write import write_profile
    from simulator.cli.progress import ProgressBar
    from simulator.device import load_device
    from simulator.profile import read_profile
    from simulator.profile_choice import family_defaults

    if Path(out).exists() and not overwrite:
        raise UserError(f"'{out}' exists; give another --out, or --overwrite to replace it")
    records = [record for path in runs for record in read_records(path)]
    twice = [name for name, count in Counter(record.run_id for record in records).items() if count > 1]
    if twice:
        raise UserError(f"run_id '{twice[0]}' appears in more than one file, expected unique ids over all files")
    device = load_device(gpu)
    start = read_profile(Path(prior)) if prior else family_defaults(device)
    with ProgressBar("evaluations") as bar:
        result = fit_profile(records, device.id, start, tuple(Path(r).name for r in runs), engine, bar)
    command = "calibrate fit " + " ".join(shlex.quote(Path(r).name) for r in runs) + f" --gpu {device.id} --out FILE"
    write_profile(out, result.profile, command, overwrite)
    click.echo(fit_text(result, start))


def fit_text(result, prior) -> str:
    """The fit as a table: prior, fitted value, spread, identified or not; then errors."""
    from calibration.fit import POWER_PRIOR_LOG_SD, PRIOR_LOG_SD
    from simulator.profile import PARAMETERS

    profile = result.profile
    lines = [f"{profile.title}: {profile.source}, {result.points} times, {result.evaluations} evaluations", ""]
    lines.append(f"{'parameter':28} {'unit':8} {'prior':>11} {'fitted':>11} {'spread':>8}  identified")
    for name in (*PRIOR_LOG_SD, *POWER_PRIOR_LOG_SD):
        spread = profile.parameter_log_sd[name]
        before, after = getattr(prior.parameters, name), getattr(profile.parameters, name)
        known = "no" if name in result.not_identified else "yes"
        lines.append(f"{name:28} {PARAMETERS[name].unit:8} {before:11.4g} {after:11.4g} {100 * spread:7.1f}%  {known}")
    if not result.converged:
        lines += ["", "WARNING: the search stopped at its limit of evaluations: the values are not a minimum"]
    lines += ["", "spread that intervals are built from (log standard deviation):"]
    lines.append("  " + ", ".join(f"{kind} {sd:.3f}" for kind, sd in profile.log_sd.items()))
    if result.left_out_log_sd:
        lines.append("left-one-model-out, root mean square of log(predicted / measured):")
        lines.append("  " + ", ".join(f"{metric} {sd:.3f}" for metric, sd in result.left_out_log_sd.items()))
    return "\n".join(lines)


def main() -> None:
    """Entry point of the console script."""
    calibrate(prog_name="calibrate")


if __name__ == "__main__":
    sys.exit(main())
