"""The sub-command `calibrate kernels`: fit the kernel models to the operator tables that ship, and write the files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from simulator.errors import UserError, unknown_name


def register(group: click.Group) -> None:
    """Add `kernels` to the program."""
    group.add_command(kernels)


@click.command()
@click.option(
    "--gpu", "gpus", multiple=True, metavar="NAME",
    help="GPU whose tables to fit, may be repeated. Default: all that have tables, and every family.",
)  # fmt: skip
@click.option("--out", metavar="DIR", help="Where to write NAME.toml. Default: print only.")
@click.option("--overwrite", is_flag=True, help="Replace files in --out that exist.")
def kernels(gpus: tuple[str, ...], out: str | None, overwrite: bool) -> None:
    """Fit the kernel models to the measured operator tables that ship.

    Robust bounded least squares per GPU and operator, with priors; families are fitted on all their GPUs together, and
    what no table tells is taken from all GPUs. Prints what the tables identify, then errors in-sample and on shapes
    left out of the fit, beside those of a plain roofline. Deterministic; one to two minutes.

    \b
    Examples:
      calibrate kernels --gpu l40s
      calibrate kernels --out calibration/profiles/kernels --overwrite
    """
    from calibration.kernels import build, tables
    from calibration.write import write_text
    from simulator.cli.progress import ProgressBar

    chosen = _with_tables(gpus, tables.GPUS)
    names = chosen if gpus else tuple(build.RECIPES)
    paths = _paths(out, names, overwrite)
    with ProgressBar("GPUs fitted") as bar:
        jobs = min(len(chosen), os.cpu_count() or 1)
        found = list(build.parallel(_own if gpus else _own_and_transfer, chosen, jobs, bar))
    ledger = [row for one in found for row in one["ledger"]]
    biases = {gpu: one["bias"] for gpu, one in zip(chosen, found) if "bias" in one}
    built = []
    with ProgressBar("files") as bar:
        for done, name in enumerate(names if out else (), start=1):
            built.append(build.build(name, ledger, biases))
            bar(done, len(names))
    for path, file in zip(paths, built):
        write_text(path, build.kernels_text(file), overwrite)
    for gpu, one in zip(chosen, found):
        click.echo("\n".join(parameter_table(gpu, one["fits"])) + "\n")
    click.echo("\n".join(error_table(ledger)))
    if biases:
        click.echo("\n" + "\n".join(transfer_table(biases)))
    if built:
        click.echo("\n" + "\n".join(f"{path}: log_sd of time {k.log_sd['time']:g}" for path, k in zip(paths, built)))
    unfinished = [f"{gpu} {group}" for gpu, one in zip(chosen, found) for group, fit in one["fits"].items()
                  if not fit.solution.converged]  # fmt: skip
    if unfinished:
        click.echo(f"\nWARNING: stopped at the limit of evaluations, not at a minimum: {', '.join(unfinished)}")


def _with_tables(names: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Ids of the GPUs named, all of which must have tables; all that have, if none is named."""
    from simulator.device import load_device

    chosen = tuple(dict.fromkeys(load_device(name).id for name in names)) or tuple(known)
    for gpu in chosen:
        if gpu not in known:
            raise unknown_name("GPU with operator tables", gpu, known, f"tables exist of {', '.join(known)}")
    return chosen


def _paths(out: str | None, names: Sequence[str], overwrite: bool) -> list[Path]:
    """Where the files go. UserError, before any work, when one exists or the folder cannot be made."""
    if out is None:
        return []
    paths = [Path(out) / f"{name}.toml" for name in names]
    for path in paths:
        if path.exists() and not overwrite:
            raise UserError(f"'{path}' exists; give another --out, or --overwrite to replace it")
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"'{out}' cannot be made a folder: {error.strerror}") from None
    return paths


def _own(gpu: str) -> dict[str, Any]:
    """Errors and fits of one GPU."""
    from calibration.kernels import build, report

    return {"ledger": report.ledger_of(gpu), "fits": build.own_fits(gpu)}


def _own_and_transfer(gpu: str) -> dict[str, Any]:
    """The same, and what a fit on other GPUs is off by."""
    from calibration.kernels import build

    return {**_own(gpu), "bias": build.transfer_bias(gpu)}


def parameter_table(gpu: str, fits: Mapping[str, Any]) -> list[str]:
    """What the tables of one GPU say of every parameter that they bear on."""
    from simulator.parameters import SPECS

    lines = [f"{gpu}: {'parameter':38} {'unit':8} {'prior':>10} {'fitted':>10} {'spread':>8}  identified"]
    for group, fit in fits.items():
        for name, log_sd in fit.solution.log_sd.items():
            known = "no" if name in fit.solution.not_identified else "yes"
            unit = SPECS[f"{group}.{name}"].unit
            lines.append(
                f"  {group + '.' + name:{38 + len(gpu)}} {unit:8} {fit.prior[name]:10.4g} {fit.values[name]:10.4g} "
                f"{100.0 * log_sd:7.1f}%  {known}"
            )
    return lines


def error_table(ledger: Sequence[Mapping[str, Any]]) -> list[str]:
    """Errors of every GPU and operator, predicted / measured - 1, in per cent."""
    lines = [
        f"{'errors in %':14} {'':20} {'':32} {'':>6} {'in-sample':^21} {'held out':^21} {'roofline':>8}",
        f"{'GPU':14} {'operator':20} {'class':32} {'n':>6}{2 * ('   bias median    p90')}   median",
    ]
    for row in ledger:
        figures = "".join(
            f"{100 * row[f'{part}_bias']:+7.1f}{100 * row[f'{part}_median']:7.1f}{100 * row[f'{part}_p90']:7.1f}"
            for part in ("in", "held")
        )
        lines.append(
            f"{row['gpu']:14} {row['operator']:20} {row['class']:32} {row['n']:6}{figures}"
            f"{100 * row['roofline_median']:9.0f}"
        )
    return lines


def transfer_table(biases: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """Bias of every GPU under fits that saw only its siblings, or only other families, in per cent."""
    lines = ["median log(predicted / measured) in %, fitted on siblings / on other families only"]
    for gpu, found in biases.items():
        parts = []
        for group, bias in found["others"].items():
            near = found["siblings"].get(group)
            parts.append(f"{group} {'-' if near is None else f'{100 * near:+.1f}'} / {100 * bias:+.1f}")
        lines.append(f"{gpu:14} {', '.join(parts)}")
    return lines
