"""Which tool wrote a file: every kind of result file with the fields that give it away, and what reads it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from calibration.importers.fields import Fields, SourceFile
from calibration.importers.given import apply_given
from calibration.importers.row import Row, Skipped
from simulator.errors import UserError

AUTO = "auto"
ENOUGH = 0.6  # share of a kind's fields that a file must have to be taken for one


@dataclass(frozen=True)
class Kind:
    """One kind of result file."""

    tool: str  # as --tool names it
    title: str
    reader: str  # module.function, loaded when needed
    fields: tuple[str, ...]
    one_run: bool = False  # all documents of a file are one run: a line per request

    def share(self, fields: Fields) -> float:
        """Which part of the telling fields a document has; null counts, it is a field all the same."""
        return sum(_there(fields.data, path) for path in self.fields) / len(self.fields)

    @property
    def read(self) -> Callable[[SourceFile, Mapping[str, Any]], list[Row | Skipped]]:
        """The reader."""
        module, _, name = self.reader.partition(".")
        return getattr(importlib.import_module(f"calibration.importers.{module}"), name)


KINDS = (
    Kind("vllm", "vllm bench serve", "vllm_bench.read_serve",
         ("model_id", "num_prompts", "request_rate", "max_concurrency", "completed", "total_token_throughput",
          "mean_ttft_ms")),
    Kind("vllm", "vllm bench latency", "vllm_bench.read_latency", ("avg_latency", "latencies", "percentiles")),
    Kind("vllm", "vllm bench throughput", "vllm_bench.read_throughput",
         ("elapsed_time", "num_requests", "total_num_tokens", "requests_per_second", "tokens_per_second")),
    Kind("guidellm", "GuideLLM benchmarks.json", "guidellm.read",
         ("benchmarks", "metadata.version", "metadata.guidellm_version")),
    Kind("aiperf", "AIPerf summary", "aiperf.read_summary",
         ("input_config", "benchmark_duration.unit", "request_latency.unit", "request_count.unit",
          "output_sequence_length.unit")),
    Kind("aiperf", "AIPerf records", "aiperf.read_records",
         ("metadata.benchmark_phase", "metadata.request_start_ns", "metadata.request_end_ns", "metrics"),
         one_run=True),
    Kind("genai-perf", "GenAI-Perf summary", "genai_perf.read",
         ("input_config.perf_analyzer", "input_config.model_names", "request_latency.unit", "request_throughput.unit",
          "input_config.subcommand", "output_sequence_length.unit")),
    Kind("sglang", "sglang.bench_serving", "sglang_bench.read",
         ("backend", "dataset_name", "request_rate", "total_output_tokens_retokenized", "input_throughput",
          "mean_e2e_latency_ms")),
    Kind("llama-bench", "llama-bench JSON", "llama_bench.read",
         ("build_commit", "build_number", "model_type", "n_prompt", "n_gen", "avg_ns", "avg_ts", "samples_ns")),
    Kind("inferencex", "InferenceX row", "inferencex.read",
         ("hw", "conc", "framework", "precision", "isl", "osl", "tput_per_gpu", "mean_ttft")),
    Kind("mlenergy", "ML.ENERGY leaderboard file", "mlenergy.read", ("task", "configurations")),
)  # fmt: skip
TOOLS = tuple(dict.fromkeys(kind.tool for kind in KINDS))


def _there(value: Any, path: str) -> bool:
    for part in path.split("."):
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True


@dataclass(frozen=True)
class Imported:
    """What one file gave: its kind, rows with their ids, and what could not become a row."""

    file: str
    kind: Kind
    rows: tuple[tuple[str, Row], ...]
    skipped: tuple[Skipped, ...] = field(default=())


def find_kind(source: SourceFile, tool: str) -> Kind:
    """The kind of a file. UserError when it is no known one, or not of the tool that was named."""
    fields = Fields(source.documents[0], source.name)
    if _there(fields.data, "benchmark.extra_info") or _there(fields.data, "metric.benchmark_values"):
        raise UserError(f"{source.name}: is in PyTorch's benchmark format, expected the tool's own result file")
    ranked = sorted(KINDS, key=lambda kind: -kind.share(fields))
    best = ranked[0] if ranked[0].share(fields) >= ENOUGH else None
    if tool == AUTO:
        if best is None:
            raise UserError(
                f"{source.name}: looks like no known tool's result file, expected one of {', '.join(TOOLS)}; "
                "name it with --tool to learn which fields are missing"
            )
        return best
    own = next(kind for kind in ranked if kind.tool == tool)
    if best is not None and best.tool != tool and best.share(fields) > own.share(fields):
        raise UserError(f"{source.name}: looks like a {best.title} file, expected {tool}; give --tool {best.tool}")
    if not any(_there(fields.data, path) for path in own.fields):
        raise UserError(f"{source.name}: has none of the fields of {tool}, expected {', '.join(own.fields[:3])}, ...")
    return own


def import_source(source: SourceFile, tool: str, given: Mapping[str, Any]) -> Imported:
    """Everything that a file gives, the user's statements added, every value checked.

    A run's id is made of tool, content of the document that it stands in, and place in that document.
    """
    kind = find_kind(source, tool)
    rows: list[tuple[str, Row]] = []
    skipped: list[Skipped] = []
    for part in (source,) if kind.one_run else source.parts():
        for index, one in enumerate(kind.read(part, given)):
            if isinstance(one, Skipped):
                skipped.append(one)
                continue
            apply_given(one, given)
            rows.append((f"{one.source}-{part.digest[:12]}-{index}", one.checked()))
    return Imported(source.name, kind, tuple(rows), tuple(skipped))


def refuse_twins(imported: list[Imported]) -> None:
    """UserError when a run is in the files twice, so that it would be in the records twice."""
    seen: dict[str, str] = {}
    for one in imported:
        for run_id, row in one.rows:
            if run_id in seen:
                raise UserError(f"{row.where}: is the run of {seen[run_id]} again, expected every run once")
            seen[run_id] = row.where
