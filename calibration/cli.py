"""The command `calibrate`: measure engines, take in others' measurements, fit profiles to them."""

from __future__ import annotations

import sys

import click

from calibration.commands import collect, fit, import_runs, kernels, profiles
from simulator.cli.exits import OneLineErrors


class Calibrate(OneLineErrors, click.Group):
    """The program, with one-line errors."""


@click.group(cls=Calibrate, context_settings={"help_option_names": ["-h", "--help"]})
def calibrate() -> None:
    """Measure engines, fit the simulator to measured runs and operator tables, and say how good the fit is.

    \b
    Examples:
      calibrate collect --backend vllm --model Qwen/Qwen3-8B --gpu h100 --out my-runs --dry-run
      calibrate import serve.json --gpu h100 --engine vllm:0.11.1 --out runs.csv
      calibrate fit my-runs.csv --gpu h100 --out my-h100.toml --plots residuals/
      simulate --gpu h100 --strategy pdr --calibration my-h100.toml
      validate runs.csv --profile my-h100.toml
      calibrate kernels --gpu l40s
      calibrate ledger --out docs/fidelity.md
    """


for command in (collect, import_runs, fit, kernels, profiles):
    command.register(calibrate)


def main() -> None:
    """Entry point of the console script."""
    calibrate(prog_name="calibrate")


if __name__ == "__main__":
    sys.exit(main())
