"""`--list`: what is known, as a table for people and as rows for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import msgspec

from simulator.report import units
from simulator.report.plain import columns
from simulator.scenario import calibration_status
from simulator.strategies.registry import COMMON

if TYPE_CHECKING:
    from simulator.device import Device
    from simulator.model import Model, ModelSummary
    from simulator.profile import Calibration
    from simulator.strategies import Strategy
    from simulator.workload.builtin_traces import TraceSheet


WIDTH, INDENT = 110, " " * 4  # of texts under a row


@dataclass(frozen=True)
class Listing:
    """Texts of a table (`right`: columns aligned to the right) and the same facts as JSON-ready `objects`.

    `below`: the last column is long, and stands under its row.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: tuple[int, ...]
    objects: list[dict[str, Any]]
    footer: str
    below: bool = False


def list_gpus(devices: list[tuple[Device, Calibration]]) -> Listing:
    """Every data sheet, and the calibration that a flight on it rests on."""
    rows = []
    for device, calibration in devices:
        peak = device.compute.peak_flop_per_s.get("bf16")
        rows.append(
            (
                device.id,
                units.significant(device.memory.capacity_byte / 1e9),
                units.significant(device.memory.bandwidth_byte_per_s / 1e9, 4),
                units.significant(peak / 1e12) if peak else "none",
                units.significant(device.power.limit_w),
                price_text(device),
                calibration_status(calibration),
                ", ".join(device.aliases),
            )
        )
    head = ("name", "GB", "GB/s", "bf16 TFLOPS", "W", "price", "calibration", "aliases")
    footer = (
        "bf16 TFLOPS are dense. Calibration: fitted on this GPU, borrowed from a sibling, or defaults with wide error "
        "bars. A data sheet of your own: --gpu ./my-gpu.toml"
    )
    return Listing(head, tuple(rows), (1, 2, 3, 4), [_gpu_object(*row) for row in devices], footer)


def price_text(device: Device) -> str:
    """'$2.49/h', '$1,999 to buy' or 'not stated'."""
    if device.price.usd_per_hour is not None:
        return f"${device.price.usd_per_hour:.2f}/h"
    if device.price.purchase_usd is not None:
        return f"${device.price.purchase_usd:,.0f} to buy"
    return units.NOT_STATED


def _gpu_object(device: Device, calibration: Calibration) -> dict[str, Any]:
    return {
        "name": device.id,
        "title": device.name,
        "aliases": list(device.aliases),
        "vendor": device.vendor,
        "architecture": device.architecture,
        "memory_byte": device.memory.capacity_byte,
        "memory_kind": device.memory.kind,
        "unified_memory": device.memory.unified,
        "bandwidth_byte_per_s": device.memory.bandwidth_byte_per_s,
        "peak_flop_per_s": dict(device.compute.peak_flop_per_s),
        "power_limit_w": device.power.limit_w,
        "idle_w": device.power.idle_w,
        "power_modes": [mode.name for mode in device.power_modes],
        "default_power_mode": device.default_power_mode,
        "usd_per_hour": device.price.usd_per_hour,
        "purchase_usd": device.price.purchase_usd,
        "price_date": device.price.date or None,
        "calibration": calibration.id,
        "calibration_status": calibration_status(calibration),
        "sources": dict(device.sources),
    }


def list_models(models: list[tuple[ModelSummary, Model]]) -> Listing:
    """Every bundled model."""
    rows = tuple(
        (
            summary.name,
            units.parameters(summary.parameters),
            units.parameters(model.active_parameters()),
            str(model.num_layers),
            f"{model.max_position_embeddings:,}",
            model.quantisation or model.torch_dtype,
            ", ".join(summary.aliases),
        )
        for summary, model in models
    )
    objects = [
        {
            "name": summary.name,
            "aliases": list(summary.aliases),
            "parameters": summary.parameters,
            "published_parameters": summary.published_parameters,
            "parameter_source": summary.source,
            "active_parameters": model.active_parameters(),
            "architecture": model.architecture,
            "layers": model.num_layers,
            "max_position_embeddings": model.max_position_embeddings,
            "weights": model.quantisation or model.torch_dtype,
            "diffusion": model.diffusion,
        }
        for summary, model in models
    ]
    head = ("name", "parameters", "active", "layers", "context tok", "weights", "aliases")
    footer = "A model of your own: --model ./config.json or a folder that holds one (Hugging Face format)"
    return Listing(head, rows, (1, 2, 3, 4), objects, footer)


def list_strategies(strategies: list[Strategy]) -> Listing:
    """Every strategy with its paper, what it works on and with, parameters and defaults."""
    rows = tuple((strategy.name, strategy.source, strategy.title, _details(strategy)) for strategy in strategies)
    objects = [
        {
            "name": strategy.name,
            "aliases": list(strategy.aliases),
            "title": strategy.title,
            "source": strategy.source,
            "description": strategy.description,
            "roles": dict(strategy.roles),
            "questions": strategy.questions,
            "streams": strategy.streams,
            "diffusion": strategy.diffusion,
            "parameters": [asdict(parameter) for parameter in strategy.parameters],
            "assumptions": list(strategy.assumptions),
        }
        for strategy in strategies
    ]
    common = ", ".join(f"{p.name}={p.default}" for p in COMMON)
    head = ("name", "paper", "what it does", f"parameters with defaults (* published, else assumed), besides {common}")
    footer = (
        "What a strategy does and what its parameters mean: simulate --strategy NAME --help. Roles can be played by "
        "another model: --role NAME=MODEL[@GPU]. A strategy of your own: --strategy ./mine.py"
    )
    return Listing(head, rows, (), objects, footer, below=True)


def _details(strategy: Strategy) -> str:
    """'also bon; roles: judge; samples=8*, budget_tok=4096'."""
    common = {p.name for p in COMMON}
    values = [f"{p.name}={p.default}{'*' * p.published}" for p in strategy.parameters if p.name not in common]
    facts = (
        f"also {', '.join(strategy.aliases)}" if strategy.aliases else "",
        f"works on a set of {strategy.questions} questions" if strategy.questions is not None else "",
        f"parallel streams in every forward pass: {strategy.streams}" if strategy.streams is not None else "",
        "needs a diffusion model" if strategy.diffusion else "",
        f"roles: {', '.join(strategy.roles)}" if strategy.roles else "",
        ", ".join(values),
    )
    return "; ".join(filter(None, facts))


def list_traces(traces: Sequence[TraceSheet]) -> Listing:
    """Every trace that ships with Tokenflight."""
    rows = tuple(
        (
            trace.name,
            f"{trace.requests:,}",
            f"{trace.mean_input_tok:,.0f}",
            f"{trace.mean_output_tok:,.0f}",
            "lengths only" if trace.duration_s is None else units.seconds(trace.duration_s),
            trace.licence,
            trace.title,
        )
        for trace in traces
    )
    head = ("name", "requests", "mean input tok", "mean output tok", "lasts", "licence", "what it is")
    footer = (
        "Lengths only: say when requests come, with --rate or --concurrency. What not to conclude from a trace: "
        "simulate --list traces --json. A trace of your own: --trace ./my-trace.csv with t_s,input_tok,output_tok"
    )
    return Listing(head, rows, (1, 2, 3), [msgspec.to_builtins(trace) for trace in traces], footer)


def render_listing(listing: Listing) -> str:
    """Plain text, the same at every width."""
    table = [listing.columns, *listing.rows]
    if not listing.below:
        return "\n".join([*columns(table, right=listing.right), "", listing.footer]) + "\n"
    lines = []
    for line, row in zip(columns([row[:-1] for row in table], right=listing.right), table):
        lines += [line, *wrap(row[-1], WIDTH, initial_indent=INDENT, subsequent_indent=INDENT, break_on_hyphens=False)]
    return "\n".join([*lines, "", *wrap(listing.footer, WIDTH, break_on_hyphens=False)]) + "\n"
