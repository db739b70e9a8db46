"""The command `calibrate`: fit profiles to measured runs. (`collect` and `import` are further sub-commands to come.)"""

from __future__ import annotations

import sys

import click

from calibration.commands import fit, kernels, profiles
from simulator.cli.exits import OneLineErrors


class Calibrate(OneLineErrors, click.Group):
    """The program, with one-line errors."""


@click.group(cls=Calibrate, context_settings={"help_option_names": ["-h", "--help"]})
def calibrate() -> None:
    """Fit the simulator to measured runs and operator tables, and say how good the fit is.

    \b
    Examples:
      calibrate fit my-runs.csv --gpu h100 --out my-h100.toml --plots residuals/
      simulate --gpu h100 --strategy pdr --calibration my-h100.toml
      validate runs.csv --profile my-h100.toml
      calibrate kernels --gpu l40s
      calibrate ledger --out docs/fidelity.md
    """


for command in (fit, kernels, profiles):
    command.register(calibrate)


def main() -> None:
    """Entry point of the console script."""
    calibrate(prog_name="calibrate")


if __name__ == "__main__":
    sys.exit(main())
