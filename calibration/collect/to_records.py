"""From a journal to run records (docs/records.md) and raw samples. Files are replaced whole or not at all."""

from __future__ import annotations

import csv
import gzip
import io
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from calibration.collect.journal import Contents, Entry, Failure
from calibration.collect.load_flags import rate_of_sending
from calibration.collect.point import EngineFacts, Observation, Point
from calibration.collect.record_flags import flags_of, has_dummy_weights
from calibration.collect.record_power import power_of_record
from calibration.collect.statistics import in_flight, latencies, rates, window_s
from calibration.collect.validity import runs_that_count
from calibration.records import COLUMNS, METRICS, RunRecord, read_records
from simulator.errors import UserError

RUNS, HELD_OUT, SAMPLES, JOURNAL = "runs.csv", "held_out.csv", "samples.jsonl.gz", "journal.jsonl"
LEAST = 1e-9  # of a metric: below that nothing was measured
NOISE_OF = ("ttft_s_mean", "tpot_s_mean")
# Settings of the schema and the names under which engines state them.
_SETTINGS = (
    "max_num_seqs", "max_num_batched_tokens", "max_model_len", "gpu_memory_utilization", "prefix_caching",
    "chunked_prefill",
)  # fmt: skip


def records_of(contents: Contents) -> list[RunRecord]:
    """One record per measured point, in the order of measuring; A/A repeats carry their relative spread."""
    return with_noise([(entry.point, record_of(entry, contents.manifest)) for entry in contents.latest])


def record_of(entry: Entry, manifest: dict[str, Any]) -> RunRecord:
    """The record of one point, of those of its runs that count."""
    seen = runs_that_count(entry.observations)
    columns = {
        **configuration(entry.point, entry.facts),
        "request_rate_rps": entry.point.request_rate_rps or rate_of_sending(entry),
        "input_tok": _mean_tok(seen, "input_tok", entry.point.input_tok),
        "output_tok": _mean_tok(seen, "output_tok", entry.point.output_tok),
        **latencies(seen),
        **rates(seen),
        "batch_mean": _batch_mean(entry, seen),
        **power_of_record(entry, dummy=has_dummy_weights(entry, manifest)),
    }
    flags = flags_of(entry, manifest)
    if columns.get("tpot_s_mean", LEAST) < LEAST:
        flags.append("suspect:buffered_stream")  # all tokens came at once: something between held them back
    return RunRecord(
        run_id=run_id(entry.point, manifest),
        source=f"collect-{manifest['asked']['backend']}",
        gpu=manifest["gpu"],
        power_mode=manifest["asked"].get("power_mode"),
        flags=";".join(flags) or None,
        **{name: value for name, value in columns.items() if name not in METRICS or (value or 0.0) >= LEAST},
    )


def run_id(point: Point, manifest: dict[str, Any]) -> str:
    """The name of a point in records: unique over all measurements."""
    return f"{manifest['set']}-{point.key.replace(' ', '-')}"


def configuration(point: Point, facts: EngineFacts) -> dict[str, Any]:
    """The columns of a record that say what ran, before anything is measured."""
    settings = {name: facts.settings.get(name) for name in _SETTINGS}
    if settings["chunked_prefill"] is False and settings["max_num_batched_tokens"] is None:
        # An engine without a limit takes all prompts of a batch in one step.
        settings["max_num_batched_tokens"] = point.concurrency * max(point.input_tok, 1)
    return {
        "n_gpus": facts.n_gpus,
        "tp": facts.tp,
        "pp": facts.pp,
        "ep": facts.settings.get("ep"),
        "dp": facts.settings.get("dp"),
        "model": facts.model,
        "weight_dtype": facts.weight_dtype,
        "activation_dtype": facts.activation_dtype,
        "kv_dtype": facts.kv_dtype,
        "engine": facts.engine,
        "engine_version": facts.engine_version,
        **settings,
        "cuda_graphs": facts.settings.get("cuda_graphs") if point.cuda_graphs is None else point.cuda_graphs,
        "load": point.load,
        "concurrency": None if point.load == "open_loop" else point.concurrency,
        "request_rate_rps": point.request_rate_rps,
        "num_requests": point.num_requests,
        "input_tok": point.input_tok,
        "output_tok": point.output_tok,
        "length_spread": point.length_spread,
        "kv_capacity_tok": kv_capacity_tok(facts),
    }


def _mean_tok(observations: Sequence[Observation], name: str, asked: int) -> float:
    """Tokens per request as runs_that_count, where requests came to their end; else as asked for."""
    runs_that_count = [getattr(r, name) for o in observations for r in o.requests if r.status == "ok"]
    return sum(runs_that_count) / len(runs_that_count) if runs_that_count else asked


def kv_capacity_tok(facts: EngineFacts) -> float | None:
    """Tokens of KV cache as the engine reports them, directly or in blocks."""
    told = facts.settings.get("kv_capacity_tok")
    if told:
        return float(told)
    blocks, size = facts.settings.get("num_gpu_blocks"), facts.settings.get("block_size")
    return float(blocks * size) if blocks and size else None


def _batch_mean(entry: Entry, seen: Sequence[Observation]) -> float | None:
    """Running requests where a client can know them: all that it has sent run at once."""
    point, settings = entry.point, entry.facts.settings
    seats, budget = settings.get("max_num_seqs"), settings.get("max_num_batched_tokens")
    room, at_once = kv_capacity_tok(entry.facts), point.concurrency * point.input_tok
    if point.load == "open_loop" or point.longest_tok or not (seats and budget and room):
        return None
    if point.concurrency > seats or at_once > budget or at_once + point.concurrency * point.output_tok > room:
        return None
    return in_flight(seen)


def with_noise(rows: Iterable[tuple[Point, RunRecord]]) -> list[RunRecord]:
    """Records with rel_noise where a configuration was measured several times.

    The standard deviation of its repeats relative to their mean, of mean ttft or mean tpot, whichever is larger. Runs
    that are suspect for a reason do not count.
    """
    rows = list(rows)
    by_configuration: dict[str, list[RunRecord]] = {}
    for point, record in rows:
        if not record.flagged("suspect:"):
            by_configuration.setdefault(point.configuration, []).append(record)
    noise = {name: relative_spread(group) for name, group in by_configuration.items()}
    return [msgspec.structs.replace(record, rel_noise=noise.get(point.configuration)) for point, record in rows]


def relative_spread(repeats: Sequence[RunRecord]) -> float | None:
    """The larger relative standard deviation of the metrics in `NOISE_OF` over repeats; None for fewer than two."""
    found = []
    for name in NOISE_OF:
        values = [value for record in repeats if (value := getattr(record, name)) is not None]
        if len(values) > 1:
            found.append(float(np.std(values, ddof=1) / np.mean(values)))
    return max(found) if found else None


def write_records(folder: Path, records: Sequence[RunRecord]) -> None:
    """runs.csv with what may be fitted, held_out.csv with what is for validation only.

    Both are read back before they take the place of older ones. UserError when they are no records (an engine that
    states nonsense) or cannot be written.
    """
    replace_file(folder / RUNS, csv_bytes([r for r in records if not r.flagged("held_out")]), read_records)
    replace_file(folder / HELD_OUT, csv_bytes([r for r in records if r.flagged("held_out")]), read_records)


def csv_bytes(records: Sequence[RunRecord]) -> bytes:
    """Records as a file of the schema: every column, in its order; an empty cell for what is not known."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for record in records:
        rows.writerow([_cell(getattr(record, name)) for name in COLUMNS])
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def write_samples(folder: Path, contents: Contents) -> None:
    """samples.jsonl.gz: the manifest, then one line per request of every run, then per power window and failure."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as file:
        for row in sample_rows(contents):
            file.write(msgspec.json.encode(row) + b"\n")
    replace_file(folder / SAMPLES, packed.getvalue())


def sample_rows(contents: Contents) -> Iterable[dict[str, Any]]:
    """The lines of samples.jsonl.gz. Times are seconds since the start of their run's window."""
    yield {"manifest": contents.manifest, "starts": contents.starts}
    for entry in contents.entries:
        name = run_id(entry.point, contents.manifest)
        for repetition, seen in enumerate(entry.observations):
            for number, r in enumerate(seen.requests):
                yield {
                    "run_id": name, "repetition": repetition, "request": number, "input_tok": r.input_tok,
                    "output_tok": r.output_tok, "cached_tok": r.cached_tok, "status": r.status,
                    "send_s": round(r.send_s - seen.start_s, 9),
                    "due_s": None if r.due_s is None else round(r.due_s - seen.start_s, 9),
                    "asked_tok": r.asked_tok,
                    "token_s": [round(at - seen.start_s, 9) for at in r.token_s],
                    "tokens_per_event": r.tokens_per_event,
                }  # fmt: skip
            yield {
                "run_id": name, "repetition": repetition, "window_s": window_s([seen]), "steps_s": seen.steps_s,
                "notes": seen.notes,
            }  # fmt: skip
        yield {"run_id": name, "power": entry.power, "environment": entry.environment}
    for failure in contents.failures:
        yield {"point": failure.point.key, "failed": failure.reason}


def still_failed(contents: Contents) -> list[Failure]:
    """The last failure of every point that was never measured."""
    return list({f.point.key: f for f in contents.failures if f.point.key not in contents.done}.values())


def replace_file(path: Path, content: bytes, check: Callable[[Path], object] | None = None) -> None:
    """Put a whole file in the place of another; a reader sees the old one or the new one.

    check: raises when the new file must not take its place. UserError when it cannot be written.
    """
    beside = path.with_name(f".{path.name}.part")
    try:
        try:
            with open(beside, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if check is not None:
                check(beside)
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"'{path}' cannot be written: {error.strerror}") from None
