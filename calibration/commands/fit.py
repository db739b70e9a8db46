"""The sub-command `calibrate fit`: a profile from a user's own measured runs (and operator tables)."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path

import click

from simulator.errors import UserError


def register(group: click.Group) -> None:
    """Add `fit` to the program."""
    group.add_command(fit)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path())
@click.option("--gpu", required=True, metavar="NAME", help="GPU whose rows to fit.")
@click.option("--out", required=True, metavar="FILE.toml", help="Where to write the profile.")
@click.option("--engine", metavar="FAMILY", help="Engine family to fit. Default: that of most rows of the GPU.")
@click.option("--prior", metavar="FILE.toml", help="Profile to start from. Default: what is known.")
@click.option("--kernels", metavar="DIR", help="Operator tables of this GPU (gemm_NAME.csv, ...): fitted first.")
@click.option("--plots", metavar="DIR", help="Write figures of the residuals by regime here.")
@click.option("--residual-regressor", is_flag=True, help="Try a learnt correction on top; kept only if it helps.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes to fit on.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option("--overwrite", is_flag=True, help="Replace --out if it exists.")
def fit(
    runs: tuple[str, ...], gpu: str, out: str, engine: str | None, prior: str | None, kernels: str | None,
    plots: str | None, residual_regressor: bool, jobs: int, as_json: bool, overwrite: bool,
) -> None:  # fmt: skip
    """Fit a profile to RUNS (measured-run records, see docs/records.md).

    Robust bounded least squares on the logarithm of predicted / measured, with a prior for every parameter, on all rows
    and with each architecture left out. Rows flagged `suspect:` are not used. Parameters that the data do not narrow
    are named and stay within their prior.
    """
    from calibration.commands.fit_report import fit_json, fit_text
    from calibration.family_fit import fit_family
    from calibration.profile_files import gpu_profile
    from calibration.write import write_profile
    from simulator.cli.progress import ProgressBar
    from simulator.device import load_device

    if Path(out).exists() and not overwrite:
        raise UserError(f"'{out}' exists; give another --out, or --overwrite to replace it")
    device = load_device(gpu)
    records = _records(runs)
    setups = _of_family(records, device.id, engine)
    priors = _priors(setups, device, prior, kernels, err=as_json)
    with ProgressBar("runs and fits") as bar:
        result = fit_family(setups, jobs=jobs, progress=bar, priors=priors)
    profile = gpu_profile(result, device.id, records, tuple(Path(run).name for run in runs))
    command = "calibrate fit " + " ".join(shlex.quote(Path(r).name) for r in runs) + f" --gpu {device.id} --out FILE"
    write_profile(out, profile, command, overwrite)
    said = []
    if residual_regressor:
        from calibration.residual_regressor import verdict

        said.append(verdict(result))
    if plots:
        from calibration.judge import judge
        from calibration.residual_plots import save_residuals

        said.append("\n".join(f"wrote {path}" for path in save_residuals(judge([result], []), plots)))
    click.echo((fit_json if as_json else fit_text)(result, profile, device.id))
    for text in said:
        click.echo("\n" + text, err=as_json)


def _records(runs: tuple[str, ...]) -> list:
    """All rows of the files; UserError when an id appears twice."""
    from calibration.records import read_records

    records = [record for path in runs for record in read_records(path)]
    twice = [name for name, count in Counter(record.run_id for record in records).items() if count > 1]
    if twice:
        raise UserError(f"run_id '{twice[0]}' appears in more than one file, expected unique ids over all files")
    return records


def _of_family(records: list, gpu: str, engine: str | None) -> list:
    """Usable runs of the GPU and one engine family; UserError when there are none."""
    from calibration.points import usable

    setups = usable(records, gpu)
    families = Counter(setup.family.id for setup in setups)
    if not families:
        raise UserError(f"no usable rows of GPU '{gpu}': {_why_none(records)}")
    chosen = engine or families.most_common(1)[0][0]
    if chosen not in families:
        raise UserError(f"no usable rows of engine family '{chosen}'; these rows have: {', '.join(sorted(families))}")
    return [setup for setup in setups if setup.family.id == chosen]


def _why_none(records: list) -> str:
    """Why none of the rows can be fitted, or what is expected of them."""
    if not records:
        return "the files hold none (calibrate collect puts open loops into held_out.csv, for validate)"
    if all(record.load == "open_loop" for record in records):
        return "all are open loops, whose queues tell of no parameter; they are for validate"
    return "expected runs that state load, lengths and a latency, and no suspect: flag"


def _priors(setups: list, device, prior: str | None, kernels: str | None, err: bool = False) -> dict:
    """The calibration to start from, by GPU id: a profile given, or what is known; with own operator tables on top."""
    import msgspec

    from calibration.regressor import prior_calibrations
    from simulator.parameters import with_values
    from simulator.profile import read_profile
    from simulator.profile_choice import at_device

    if prior:
        start = at_device(read_profile(Path(prior)), device)
    else:
        start = prior_calibrations(setups, fitted=True)[device.id]
    if kernels:
        from calibration.kernels.own_tables import fit_tables

        values, said = fit_tables(Path(kernels), device, start)
        for line in said:
            click.echo(line, err=err)
        if "gemm16.memory_fraction" in values:  # weight-only products go with 16-bit ones until runs say otherwise
            own = {n.partition(".")[2]: v for n, v in values.items() if n.startswith("gemm16.")}
            values = {**{f"gemm_weight_only.{name}": value for name, value in own.items()}, **values}
        parameters = with_values(start.parameters, values)
        start = msgspec.structs.replace(start, parameters=parameters, gpu=device.id, fitted=tuple(values))
    return {device.id: start}
