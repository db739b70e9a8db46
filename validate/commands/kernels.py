"""`validate kernels`: tables of single operators against the data sheet's bytes, FLOPs and links."""

from __future__ import annotations

import json

import click

EXIT_FINDINGS = 1


@click.command(
    short_help="Operator-latency tables against the physical floor.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path())
@click.option("--gpu", metavar="NAME", help="The GPU that was measured, where the files do not say.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@click.pass_context
def kernels(ctx: click.Context, files: tuple[str, ...], gpu: str | None, as_json: bool) -> None:
    """Find rows of operator-latency tables that no hardware of that name could have produced.

    FILE is a table in the form of the bundled ones (calibration/data/kernels): gemm_GPU, attention_prefill_GPU,
    attention_decode_GPU, moe_GPU, allreduce or kernel_power, or Vidur's vidur_GPU; .csv or .csv.gz. A row is below the
    floor when it is faster than its bytes at the data sheet's bandwidth, its FLOPs at the dense peak, or 2(n-1)/n of
    its message over the link (half of that where the switch adds up). Also said: times that do not react to m (a
    launch from the host), links that seem half as fast as usual (elements taken for bytes), power beyond the board's.

    Exit codes: 0 nothing is impossible, 1 something is, 2 a mistake in what you gave.

    \b
    Examples:
      validate kernels gemm_l40s.csv.gz
      validate kernels calibration/data/kernels/*.csv.gz --json
    """
    from pathlib import Path

    from simulator.cli.progress import ProgressBar
    from simulator.report.plain import columns
    from validate.kernel_findings import kernel_findings
    from validate.operator_tables import read_operator_rows

    findings, rows = [], 0
    with ProgressBar("reading tables") as bar:
        for done, file in enumerate(files):
            bar(done, len(files))
            parts = read_operator_rows(file, gpu)
            rows += sum(map(len, parts))
            findings.extend(kernel_findings(parts, Path(file).name))
    alarms = [finding for finding in findings if finding.alarm]
    if as_json:
        found = {"files": len(files), "rows": rows, "findings": [finding.to_dict() for finding in findings]}
        click.echo(json.dumps(found, indent=2, allow_nan=False))
    else:
        head = ("gpu", "operator", "type", "class", "rows", "of", "worst", "check")
        body = [
            (f.gpu, f.operator, f.dtype, f.fault, str(f.rows), str(f.of), f"{f.worst:.2f}", f.check) for f in findings
        ]
        lines = columns([head, *body], right=(4, 5, 6)) if findings else []
        click.echo("\n".join([
            f"{rows:,} rows of {len(files)} file{'s' * (len(files) > 1)}: {sum(f.rows for f in alarms):,} rows in "
            f"{len(alarms)} findings", *([""] if lines else []), *lines, *([""] if lines else []),
            *(f"{f.fault} {f.severity}, {f.confidence}: {f.says}. Next: {f.next}" for f in findings),
        ]))  # fmt: skip
    if alarms:
        ctx.exit(EXIT_FINDINGS)
