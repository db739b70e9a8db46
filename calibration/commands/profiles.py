"""`calibrate profiles` and `calibrate ledger`: everything that ships as fitted, and how good it is."""

from __future__ import annotations

from pathlib import Path

import click

from simulator.errors import UserError


def register(group: click.Group) -> None:
    """Add both sub-commands to the program."""
    group.add_command(profiles)
    group.add_command(ledger)


COMMAND = "calibrate ledger --out docs/fidelity.md"
_JOBS = click.option("--jobs", type=click.IntRange(1), default=2, show_default=True, help="Processes to fit on.")


@click.command()
@click.option("--out", metavar="DIR", help="Profiles folder. Default: that of this checkout.")
@click.option("--family", "families", multiple=True, metavar="NAME", help="Only this engine family; may be repeated.")
@click.option("--ledger", "ledger_file", metavar="FILE.md", help="Write the ledger of the same fits, too.")
@click.option("--plots", metavar="DIR", help="Write residual figures of the same fits, too.")
@_JOBS
def profiles(out: str | None, families: tuple[str, ...], ledger_file: str | None, plots: str | None, jobs: int) -> None:
    """Fit every engine family to the measured runs that ship, and write profiles and overheads anew.

    Engine overheads go to DIR/engines, profiles of GPUs with runs to DIR. Every architecture is left out in turn, which
    is what the spreads rest on. Takes some minutes.
    """
    from calibration.fit_all import on_servers, used_files
    from calibration.profile_files import (
        engine_text,
        fitted_engine,
        gpu_profile,
        weight_only_text,
        weight_only_values,
        with_weight_only,
    )
    from calibration.write import write_profile, write_text
    from simulator.profile_parts import profiles_directory

    folder = Path(out) if out else profiles_directory()
    records, fits = _fits(families, jobs)
    (folder / "engines").mkdir(parents=True, exist_ok=True)
    narrow = weight_only_values(fits)
    if narrow and not families:
        write_text(folder / "weight_only.toml", weight_only_text(narrow, "calibrate profiles"), overwrite=True)
    for fit in fits:
        if not fit.fitted:
            click.echo(f"{fit.family}: {len(fit.fleet.setups)} runs are too few, priors stand")
            continue
        if on_servers(fit):
            text = engine_text(fitted_engine(fit), "calibrate profiles")
            write_text(folder / "engines" / f"{fit.family}.toml", text, overwrite=True)
        for gpu in fit.gpus:
            profile = with_weight_only(gpu_profile(fit, gpu, records, used_files(fit, gpu)), narrow)
            write_profile(folder / f"{profile.id}.toml", profile, "calibrate profiles", overwrite=True)
            spread = ", ".join(f"{kind} {sd:.3f}" for kind, sd in profile.log_sd.items())
            click.echo(f"{profile.id}: {profile.source}; log_sd {spread}")
    if ledger_file or plots:
        _report(records, fits, families, ledger_file, plots, as_json=False)


@click.command()
@click.option("--out", metavar="FILE.md", help="Write the ledger here. Default: print it.")
@click.option("--plots", metavar="DIR", help="Write figures of the residuals by regime here.")
@click.option("--family", "families", multiple=True, metavar="NAME", help="Only this engine family; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
@_JOBS
def ledger(out: str | None, plots: str | None, families: tuple[str, ...], as_json: bool, jobs: int) -> None:
    """How good the simulator is, on every measured run that ships: in-sample, left out, and the plain roofline.

    For every source, GPU and model: n, bias, mean, median and 90th percentile of the error of each metric, the share
    inside the 90 % interval, and which of the stated targets are met. Left out means that the fit saw no run of an
    equal architecture on any GPU from any source.
    """
    records, fits = _fits(families, jobs)
    _report(records, fits, families, out, plots, as_json)


def _fits(families: tuple[str, ...], jobs: int):
    from calibration.fit_all import fit_all, shipped_records
    from simulator.cli.progress import ProgressBar

    records, _ = shipped_records()
    known = {path.stem for path in _engine_files()}
    for name in families:
        if name not in known:
            raise UserError(f"unknown engine family '{name}', known: {', '.join(sorted(known))}")
    with ProgressBar("runs fitted") as bar:
        return records, fit_all(records, families, jobs, bar)


def _engine_files() -> list[Path]:
    from simulator.profile_parts import profiles_directory

    return sorted((profiles_directory() / "engines").glob("*.toml"))


def _report(records, fits, families, out: str | None, plots: str | None, as_json: bool) -> None:
    from calibration.judge import judge
    from calibration.kernels import report as operators
    from calibration.ledger import markdown, to_json
    from calibration.records import records_hash
    from calibration.write import write_text
    from simulator.cli.progress import ProgressBar
    from simulator.scenario import installed_version

    command = " ".join((COMMAND, *(f"--family {name}" for name in families)))
    with ProgressBar("numbers judged") as bar:
        judged = judge(fits, records, bar)
    header = f"Version {installed_version()}, {len(records)} runs, data hash {records_hash(records)[:12]}."
    if plots:
        from calibration.residual_plots import save_residuals

        save_residuals(judged, plots)
    if as_json:
        click.echo(to_json(judged, command, header))
    if not as_json or out:
        with ProgressBar("operator tables") as bar:
            tables = operators.markdown(operators.operator_ledger(bar))
        text = markdown(judged, tables, command, header)
        if out:
            write_text(out, text, overwrite=True)
        elif not as_json:
            click.echo(text)
