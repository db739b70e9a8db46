"""What a run of traffic says, as rows of text: a Report for the same renderers that show a strategy's."""

from __future__ import annotations

import math

import numpy as np

from simulator.report import units
from simulator.report.table import Report, Section, calibration_rows, power_remark, warning_lead
from simulator.traffic.metrics import Goodput, kv_blocks_held, running
from simulator.traffic.result import TrafficResult
from simulator.traffic.served import StepRecords
from simulator.workload.traffic import counted

REPLICA_COLUMNS = ("replica", "role", "requests", "output tok", "prefill tok", "busy", "batch", "KV peak", "energy")
MOST_REPLICAS = 32
Rows = tuple[tuple[str, str, str], ...]


def build_traffic_report(result: TrafficResult) -> Report:
    """The full report of one run of traffic."""
    figures = result.summary()
    few = "; of so few, p99 is close to the slowest" if 0 < figures["completed"] < 100 else ""
    return Report(
        headline=_headline(result, figures),
        warning=warning_lead(result),
        warnings=tuple(result.calibration["extrapolated"]),
        alarms=_alarms(result, figures),
        sections=(
            Section(
                f"Latency of {counted(figures['completed'], 'request')} (p50 / p90 / p99{few})", _latency_rows(figures)
            ),
            Section("Throughput", _throughput_rows(result, figures)),
            Section(_whole("Server", result), _server_rows(result, figures)),
            Section(_whole("Power, energy, money", result), _resource_rows(result, figures)),
        ),
        shares=_shares(figures),
        shares_note="share of the replicas' time" if result.replicas > 1 else "share of the run",
        calls=_replica_rows(result),
        calls_title="Replicas",
        call_columns=REPLICA_COLUMNS,
        calls_note=_replicas_note(result),
        assumptions=result.assumptions,
        calibration=(
            *calibration_rows(result, "end-to-end time"),
            "the intervals cover the calibration's error, not another seed's arrivals; near saturation queueing "
            "amplifies it",
        ),
    )


def where(result: TrafficResult) -> str:
    """'some/model (bf16 weights) on 4 x Box 1 (30W), 4 replicas'."""
    mode = f" ({result.power_mode})" if result.power_mode else ""
    copies = f", {result.replicas} replicas" if result.replicas > 1 else ""
    return f"{result.model} ({result.precision['weights']} weights) on {result.gpu_name}{mode}{copies}"


def _headline(result: TrafficResult, figures: dict[str, float]) -> str:
    if not figures["completed"]:
        return f"{result.traffic}; {where(result)}: every request was refused."
    tpot = figures["tpot_s_p50"]
    tpot = f"TPOT p50 {units.milliseconds(tpot)}, " if math.isfinite(tpot) else ""  # outputs of one token have none
    return (
        f"{result.traffic}; {where(result)}: TTFT p50 {units.seconds(figures['ttft_s_p50'])} and p99 "
        f"{units.seconds(figures['ttft_s_p99'])}, {tpot}"
        f"{units.significant(figures['output_tok_per_s'])} output tok/s."
    )


def _alarms(result: TrafficResult, figures: dict[str, float]) -> tuple[str, ...]:
    """What a reader must know about this run before any number."""
    alarms = []
    waiting = int(figures["overloaded_waiting"])
    if waiting:
        alarms.append(
            f"the server is overloaded: its queue grew all along, and {waiting:,} of {figures['requests']:,} requests "
            "were waiting when the last one arrived. The longer such a run, the longer its TTFT and end-to-end times, "
            "so they describe this run and no steady state."
        )
    if figures["refused"]:
        limit, tokens = _tightest_limit(result)
        requests = result.served.requests
        longest = int((requests.prompt_tok + requests.output_tok)[requests.refused].max())
        were = "was" if figures["refused"] == 1 else "were"
        alarms.append(
            f"{figures['refused']:,} of {figures['requests']:,} requests {were} refused: prompt and output "
            f"together are longer than {limit} of {tokens:,} tokens (the longest {longest:,}). They are in no latency "
            "and in no throughput."
        )
    return (*alarms, *_seats_alarm(result))


def _tightest_limit(result: TrafficResult) -> tuple[str, int]:
    """(name, tokens) of the limit on prompt and output together."""
    settings = result.settings
    limits = {"max_model_len": settings.get("max_model_len")}
    limits["the KV cache"] = result.served.kv_blocks * result.served.block_size
    if not settings.get("enable_chunked_prefill", True):
        limits["max_num_batched_tokens, without chunked prefill,"] = settings.get("max_num_batched_tokens")
    known = {name: tokens for name, tokens in limits.items() if tokens is not None}
    return min(known.items(), key=lambda limit: limit[1])


def _seats_alarm(result: TrafficResult) -> tuple[str, ...]:
    """That requests which are sent together cannot all run together."""
    requests, seats = result.served.requests, result.settings.get("max_num_seqs")
    arrival_s = requests.arrival_s[~requests.refused]
    if seats is None or result.clients or len(np.unique(arrival_s)) != 1:
        return ()
    copies = sum(role != "prefill" for role in result.served.roles) or result.replicas
    if len(arrival_s) <= seats * copies:
        return ()
    each = f" on each of {copies} replicas" if copies > 1 else ""
    return (
        f"all {len(arrival_s):,} requests arrive at once, but at most {seats * copies:,} run together (max_num_seqs "
        f"{seats:,}{each}): the others wait for a seat, and their TTFT says how long.",
    )


def _latency_rows(figures: dict[str, float]) -> Rows:
    def row(title: str, name: str, remark: str) -> tuple[str, str, str]:
        unit = units.milliseconds if name in ("tpot_s", "itl_s") else units.seconds
        values = [figures[f"{name}_{which}"] for which in ("p50", "p90", "p99")]
        parts = [f"mean {unit(figures[f'{name}_mean'])}"] if math.isfinite(values[0]) else []
        if math.isfinite(figures.get(f"{name}_p50_lo", math.nan)):
            parts.append(
                f"90 % interval of p50 {units.span(figures[f'{name}_p50_lo'], figures[f'{name}_p50_hi'], unit)}"
            )
        return title, units.together(values, unit), "; ".join([*parts, remark])

    return (
        row("TTFT", "ttft_s", "arrival to first token, queueing included"),
        row("TPOT", "tpot_s", "after the first token, per request"),
        row("ITL", "itl_s", "between two tokens, over all tokens"),
        row("End to end", "e2e_s", "arrival to last token"),
        row("Queue", "queue_s", "in the engine's queue, until the first step that computes a token of it"),
    )


def _throughput_rows(result: TrafficResult, figures: dict[str, float]) -> Rows:
    def row(title: str, name: str, unit: str, remark: str = "") -> tuple[str, str, str]:
        ends = units.span(figures[f"{name}_lo"], figures[f"{name}_hi"], units.significant)
        steady = figures[f"steady_{name}"]
        parts = [f"90 % interval {ends}"] if math.isfinite(figures[name]) else []
        parts += [f"{units.significant(steady)} in the steady window"] if math.isfinite(steady) else []
        parts += [remark] if remark else []
        value = f"{units.significant(figures[name])} {unit}" if math.isfinite(figures[name]) else "-"
        return title, value, "; ".join(parts)

    steady = figures["steady_window_s"]
    window = f"steady window {units.seconds(steady)}: between the ends of the first and last tenth of the requests"
    return (
        ("Duration", units.seconds(figures["duration_s"]), window if math.isfinite(steady) else "to the last token"),
        row("Requests", "requests_per_s", "req/s"),
        row("Output", "output_tok_per_s", "tok/s"),
        row("Prompts and output", "total_tok_per_s", "tok/s"),
        *_goodput_rows(result.goodput, figures),
    )


def _goodput_rows(goodput: Goodput | None, figures: dict[str, float]) -> Rows:
    if "good_share" not in figures or goodput is None:
        return ()
    names = {"ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "end to end"}
    limits = ", ".join(f"{names[name]} <= {units.milliseconds(limit)}" for name, limit in goodput.limits().items())
    rate = f"{units.significant(figures['good_requests_per_s'])} req/s"
    return (("Goodput", rate, f"{units.percent(figures['good_share'])} of all requests meet {limits}"),)


def _server_rows(result: TrafficResult, figures: dict[str, float]) -> Rows:
    one = " of one replica" if result.replicas > 1 else ""
    seats = f"; max_num_seqs {result.settings['max_num_seqs']}" if "max_num_seqs" in result.settings else ""
    capacity = result.served.kv_blocks * result.served.block_size
    memory = result.memory
    hits = f"{units.tokens(figures['cached_tok'])} of {units.tokens(figures['input_tok'])} of prompts"
    rows = [
        (
            "Running batch",
            units.significant(figures["batch_mean"]),
            f"mean; at most {figures['batch_max']}{one}{seats}",
        ),
        ("Waiting requests", units.significant(figures["queue_mean"]), f"mean; at most {figures['queue_max']:,}"),
        (
            "KV cache in use",
            _share(figures["kv_share_mean"]),
            f"mean; at most {_share(figures['kv_share_max'])}{one}, which holds {units.tokens(capacity)}",
        ),
        ("Prefix cache hits", _share(figures["prefix_cache_hit_share"]), hits),
        (
            "Preemptions",
            f"{figures['preemptions']:,}",
            f"{units.tokens(figures['recomputed_tok'])} computed again" if figures["preemptions"] else "",
        ),
        ("Engine steps", f"{figures['steps']:,}", ""),
        (
            "Weights",
            units.gigabytes(memory["weights_byte"]),
            f"of {units.gigabytes(memory['capacity_byte'])} per device",
        ),
    ]
    return tuple(rows)


def _resource_rows(result: TrafficResult, figures: dict[str, float]) -> Rows:
    def remark(name: str, unit, before: str, after: str) -> str:
        low, high = figures[f"{name}_lo"], figures[f"{name}_hi"]
        interval = f"90 % interval {units.span(low, high, unit)}" if math.isfinite(figures[name]) else ""
        return "; ".join(part for part in (before, interval, after) if part)

    per_token = figures["usd_per_million_output_tok"]
    priced = math.isfinite(per_token) or not math.isfinite(figures["cost_usd"])
    power = remark("mean_power_w", units.watts, "", power_remark(result))
    energy = remark("energy_j", units.joules, units.watt_hours(figures["energy_j"]), "idle time included")
    return (
        ("Average power", units.watts(figures["mean_power_w"]), power),
        ("Energy", units.joules(figures["energy_j"]), energy),
        ("Energy per request", units.joules(figures["energy_j_per_request"]), ""),
        ("Energy per output token", units.joules(figures["energy_j_per_output_tok"]), ""),
        ("Cost", units.dollars(figures["cost_usd"]), str(result.price.get("basis", ""))),
        ("Cost per million output tok", units.dollars(per_token) if priced else "-", ""),
    )


def _shares(figures: dict[str, float]) -> tuple[tuple[str, float], ...]:
    """Steps with prefill, steps without, idle; they sum to 1."""
    busy, prefill = figures["busy_share"], figures["prefill_share_of_busy"]
    if not math.isfinite(prefill):
        return (("idle", 1.0),)
    parts = {"steps with prefill": busy * prefill, "decode only": busy * (1.0 - prefill), "idle": 1.0 - busy}
    return tuple(sorted(((name, max(share, 0.0)) for name, share in parts.items()), key=lambda part: -part[1]))


def _replica_rows(result: TrafficResult) -> tuple[tuple[str, ...], ...]:
    """One row per replica, the first MOST_REPLICAS; none for a single one."""
    if result.replicas == 1:
        return ()
    return tuple(_replica_row(result, replica) for replica in range(min(result.replicas, MOST_REPLICAS)))


def _replicas_note(result: TrafficResult) -> str:
    shown = f"the first {MOST_REPLICAS} of {result.replicas}; " if result.replicas > MOST_REPLICAS else ""
    return f"{shown}routing {result.routing}; means over the run; requests where they were decoded"


def _replica_row(result: TrafficResult, replica: int) -> tuple[str, ...]:
    served = result.served
    rows = slice(*np.searchsorted(served.steps.replica, (replica, replica + 1)))
    steps = _rows(served.steps, rows)
    own = served.requests.replica == replica
    busy, end = float(steps.duration_s.sum()), served.end_s or math.nan
    joules = float(steps.joules.sum()) + served.idle_power_w * max(0.0, served.end_s - busy)
    return (
        str(replica),
        served.roles[replica] if served.roles else "serve",
        f"{int(own.sum()):,}",
        f"{int(served.requests.output_tok[own].sum()):,}",
        f"{int((steps.prefill_tok * steps.steps).sum()):,}",
        _share(busy / end),
        units.significant(float(running(steps) @ steps.duration_s) / end),
        _share(float(kv_blocks_held(served)[1][rows].max(initial=0.0)) / max(served.kv_blocks, 1)),
        units.joules(joules),
    )


def _rows(steps: StepRecords, rows: slice) -> StepRecords:
    return StepRecords(*(getattr(steps, name)[rows] for name in steps.__dataclass_fields__))


def _share(fraction: float) -> str:
    return units.percent(fraction) if math.isfinite(fraction) else "-"


def _whole(title: str, result: TrafficResult) -> str:
    return f"{title} ({result.replicas} replicas together)" if result.replicas > 1 else title
