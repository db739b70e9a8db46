"""Flags of a record (docs/collecting.md): how it was measured, and what speaks against fitting or judging it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from calibration.collect.journal import Entry
from calibration.collect.load_flags import flags_of_load
from calibration.collect.power.throttle import labelling, rejecting
from calibration.collect.record_power import power_flags
from calibration.collect.statistics import in_chunks
from calibration.collect.validity import client_limits, disturbed, runs_that_count


def flags_of(entry: Entry, manifest: dict[str, Any]) -> list[str]:
    """The flags of a record, in a fixed order. Runs that were held up count only where there is no other."""
    kept = replace(entry, observations=runs_that_count(entry.observations))
    dummy = has_dummy_weights(entry, manifest)
    found = [f"set:{manifest['set']}", *_how_measured(kept, len(entry.observations) - len(kept.observations))]
    if dummy:
        found.append("dummy_weights")
    if entry.point.held_out:
        found.append("held_out")
    found += [*_engine(entry), *flags_of_load(kept, manifest)]
    if any(note.startswith("preemptions:") for seen in kept.observations for note in seen.notes):
        found.append("preempted")
    if in_chunks(kept.observations):
        found.append("chunked_stream")
    found += power_flags(entry, dummy)
    found += [f"clocks:{reason.replace(' ', '_')}" for reason in dict.fromkeys(labelling(throttle_reasons(entry)))]
    return found + suspicions(kept)


def _how_measured(entry: Entry, left_out: int) -> list[str]:
    found = ["warm_up"] if entry.environment.get("warm_up") else []
    if len(entry.observations) > 1:
        found.append(f"repetitions:{len(entry.observations)}")
    return found + ([f"disturbed_runs:{left_out}"] if left_out else [])


def _engine(entry: Entry) -> list[str]:
    """What the engine did that no column has a word for."""
    settings, found = entry.facts.settings, []
    if settings.get("async_scheduling"):
        found.append("async_scheduling")
    if settings.get("sampling") not in (None, "greedy"):
        found.append(f"sampling:{settings['sampling']}")
    if settings.get("max_cudagraph_capture_size") and settings.get("cuda_graphs"):
        found.append(f"cudagraph_max:{settings['max_cudagraph_capture_size']}")
    if settings.get("cudagraph_mode") in ("piecewise", "full"):
        found.append(f"cudagraph_mode:{settings['cudagraph_mode']}")
    return found


def has_dummy_weights(entry: Entry, manifest: dict[str, Any]) -> bool:
    """Whether the weights were not the real ones."""
    return bool(manifest["asked"].get("dummy_weights") or entry.facts.settings.get("dummy_weights"))


def throttle_reasons(entry: Entry) -> list[str]:
    """Why clocks were held down at any time of the point, in words."""
    return list(entry.power.get("throttle_reasons", ()))


def suspicions(entry: Entry) -> list[str]:
    """Reasons not to fit or judge a point by, from the runs that count."""
    requests = [r for o in entry.observations for r in o.requests]
    found = ["suspect:throttled"] if rejecting(throttle_reasons(entry)) else []
    if any(r.status.startswith("failed") for r in requests):
        found.append("suspect:failed_requests")
    if any(r.status == "cut" for r in requests) or not requests:
        found.append("suspect:cut")
    elif any(r.status == "ok" and r.output_tok != (r.asked_tok or entry.point.output_tok) for r in requests):
        found.append("suspect:output_length")
    if any(map(disturbed, entry.observations)):
        found.append("suspect:disturbed")
    if client_limits(entry.observations):
        found.append("suspect:client_limit")
    if entry.facts.settings.get("prefix_caching") is False and any(r.cached_tok for r in requests):
        found.append("suspect:cached_prompt")
    return found
