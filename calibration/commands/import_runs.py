"""The sub-command `calibrate import`: result files of other benchmark tools become run records."""

from __future__ import annotations

import json
from pathlib import Path

import click

from simulator.errors import UserError


def register(group: click.Group) -> None:
    """Add `import` to the program."""
    group.add_command(import_runs)


_TOOLS = ("auto", "vllm", "guidellm", "aiperf", "genai-perf", "sglang", "llama-bench", "inferencex", "mlenergy")


@click.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path())
@click.option("--tool", type=click.Choice(_TOOLS), default="auto", show_default=True, help="Which tool wrote FILES.")
@click.option("--out", required=True, metavar="RUNS.csv", help="Where to write the records.")
@click.option("--append", is_flag=True, help="Add to --out if it exists; a run that is in it already is refused.")
@click.option("--gpu", metavar="NAME", help="GPU of the runs, if the files do not state it (as all options below).")
@click.option("--model", metavar="ID", help="Hugging Face id; goes before a name or path in the files.")
@click.option("--engine", metavar="NAME[:VERSION]", help="Serving engine, for instance vllm:0.11.1.")
@click.option("--tp", metavar="N", help="Tensor parallelism.")
@click.option("--weights", "weight_dtype", metavar="FORMAT", help="Format of the weights: bf16, fp8, int4, ...")
@click.option("--load", metavar="LOAD", help="static_batch, closed_loop, burst, open_loop or parallel_sampling.")
@click.option("--concurrency", metavar="N", help="Batch size or clients, as the load says.")
@click.option("--input-tok", metavar="N", help="Mean prompt tokens per request.")
@click.option("--output-tok", metavar="N", help="Mean output tokens per request.")
@click.option("--set", "settings", multiple=True, metavar="COLUMN=VALUE", help="Any other column of docs/records.md.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def import_runs(
    files: tuple[str, ...], tool: str, out: str, append: bool, settings: tuple[str, ...], as_json: bool,
    **options: str | None,
) -> None:  # fmt: skip
    """Turn result FILES of benchmark tools into run records (docs/records.md, docs/importing.md).

    Reads vllm bench serve, latency and throughput, GuideLLM, AIPerf, GenAI-Perf, sglang.bench_serving, llama-bench,
    InferenceX and ML.ENERGY. Definitions are converted, and every conversion stands in the record's flags; summaries
    are recomputed where a file lists its requests. What neither file nor options state stays empty.

    \b
    Examples:
      calibrate import serve.json --gpu h100 --engine vllm:0.11.1 --tp 1 --weights bf16 --out runs.csv
      calibrate import latency.json --gpu l40s --model Qwen/Qwen3-8B --concurrency 8 --input-tok 512 --output-tok 128 \\
        --out runs.csv --append
    """
    from calibration.importers.fields import read_source
    from calibration.importers.given import read_given
    from calibration.importers.report import json_report, text_report
    from calibration.importers.table import check_target, record_of, write_rows
    from calibration.importers.tools import import_source, refuse_twins
    from simulator.cli.progress import ProgressBar

    target = Path(out)
    check_target(target, append)
    given = read_given(options, settings)
    imported = []
    with ProgressBar("files read") as bar:
        for done, name in enumerate(files, start=1):
            imported.append(import_source(read_source(name), tool, given))
            bar(done, len(files))
    refuse_twins(imported)
    rows = [record_of(run_id, row) for one in imported for run_id, row in one.rows]
    if not rows:
        reasons = "; ".join(f"{skip.where}: {skip.reason}" for one in imported for skip in one.skipped)
        raise UserError(f"nothing to import: {reasons}")
    existed = target.exists()
    write_rows(target, rows, append)
    if as_json:
        report = json_report(imported, out, append and existed)
        click.echo(json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False))
        return
    for one in imported:
        click.echo(text_report(one) + "\n")
    click.echo(f"{'added' if append and existed else 'wrote'} {len(rows)} run{'' if len(rows) == 1 else 's'}: {out}")
