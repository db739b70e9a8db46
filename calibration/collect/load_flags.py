"""Flags of a record about the requests that were sent: trace, seed, arrivals, a late client, a server behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from calibration.collect.journal import Entry
from calibration.collect.point import Observation
from calibration.collect.validity import client_late_s, overloaded, stationary


def flags_of_load(entry: Entry, manifest: dict[str, Any]) -> list[str]:
    """What was sent, by its trace and seed, and whether the server kept up with it."""
    point, seen, trace = entry.point, entry.observations, manifest["asked"].get("trace")
    found = []
    if trace:
        found += [f"trace:{trace['name']}", f"trace_sha256:{trace['sha256']}"]
        found += [f"trace_speed:{trace['speed']:g}"] if trace["speed"] else []
        found += [f"{name}_cv:{cv:.3g}" for name, cv in spreads_of_lengths(seen).items()]
    if point.load == "open_loop":
        found.append("arrivals:trace" if trace and trace["timed"] else "arrivals:poisson")
    if trace or point.load == "open_loop":
        found.append(f"seed:{manifest['seed']}")
    late_s = client_late_s(seen)
    if late_s is not None:
        found.append(f"client_lag_s:{max(late_s, 0.0):.2g}")
    if point.load == "open_loop" and any(map(overloaded, seen)):
        found.append("overload")
    if not all(stationary(point, run) for run in seen):
        found.append("not_stationary")
    return found


def spreads_of_lengths(observations: Sequence[Observation]) -> dict[str, float]:
    """Standard deviation over mean of the prompt and output tokens of all requests that came to their end."""
    found = {}
    for name in ("input", "output"):
        counted = [getattr(r, f"{name}_tok") for o in observations for r in o.requests if r.status == "ok"]
        if counted and sum(counted):
            found[name] = float(np.std(counted) / np.mean(counted))
    return found


def rate_of_sending(entry: Entry) -> float | None:
    """Mean rate at which the requests of an open loop were due, 1/s; None for other loads."""
    if entry.point.load != "open_loop":
        return None
    due = [[r.send_s if r.due_s is None else r.due_s for r in seen.requests] for seen in entry.observations]
    gaps, lasts_s = sum(len(times) - 1 for times in due), sum(max(times) - min(times) for times in due)
    return gaps / lasts_s if gaps and lasts_s > 0.0 else None
