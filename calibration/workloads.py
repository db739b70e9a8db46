"""Which requests a measured run consists of: how many, how long, how many at a time."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy.special import ndtri

from calibration.records import RunRecord
from simulator.engine.token_clock import Requests
from simulator.errors import UserError

SEED = 20240229  # of every draw: the same record always means the same requests
MAX_REQUESTS = 200_000  # one replay of more takes minutes
CLOSED_LOOP_ROUNDS = 10  # requests per client where the source does not say how many were sent
UNSTATED_UNIFORM = 0.8  # spread of lengths in loops whose source does not state any
OPEN_LOOP_REQUESTS = 1000  # where the source does not say
MOST_CV = 100.0  # of lengths that a record states: more is no spread, but a slip of the pen
DATASETS = Path(__file__).parent / "data" / "datasets.toml"


@dataclass(frozen=True)
class Spread:
    """How lengths spread around their mean, as standard deviation / mean, and what prompts share."""

    input_cv: float
    output_cv: float
    shared_prefix_share: float = 0.0


UNKNOWN_SPREAD = Spread(input_cv=1.0, output_cv=0.8)  # of data sets that nobody described: about that of chats


@dataclass(frozen=True)
class Workload:
    """The requests of one replica and what had to be assumed about them, one sentence each."""

    requests: Requests
    assumptions: tuple[str, ...] = ()


@lru_cache(maxsize=1)
def datasets() -> dict[str, Spread]:
    """The spreads of `calibration/data/datasets.toml`, by name."""
    raw = tomllib.loads(DATASETS.read_text(encoding="utf-8"))
    return {name: Spread(**{key: x for key, x in entry.items() if key != "source"}) for name, entry in raw.items()}


def workload_of(record: RunRecord, max_model_len: int | None = None, dp: int = 1) -> Workload:
    """The requests of one of `dp` replicas, each with an equal share. UserError if the record does not state enough.

    Lengths are cut at `max_model_len` (prompt and output together) and keep the record's means.
    """
    if not record.input_tok or not record.output_tok:
        raise UserError(f"run '{record.run_id}': input_tok or output_tok not stated")
    total, in_flight, assumptions = _numbers(record)
    if dp > total:
        raise UserError(f"run '{record.run_id}': {total} requests cannot be spread over {dp} replicas")
    n = round(total / dp)
    in_flight = min(n, max(1, round(in_flight / dp))) if in_flight else 0
    prompt, output, share, found = _lengths(record, n, max_model_len)
    shared = (share * prompt).astype(np.int64)
    return Workload(Requests(prompt, output, shared, in_flight), (*assumptions, *found))


def _numbers(record: RunRecord) -> tuple[int, int, list[str]]:
    """(requests, requests in flight, 0: arrivals have times of their own, assumptions), over all replicas."""
    load, assumptions = record.load, []
    concurrency = round(record.concurrency) if record.concurrency else None
    count = record.num_requests
    if load in ("static_batch", "parallel_sampling"):
        count = concurrency or (count if load == "static_batch" else None)
    elif load == "burst":
        count = count or concurrency
    elif load == "closed_loop" and concurrency and not count:
        count = CLOSED_LOOP_ROUNDS * concurrency
        assumptions.append(f"number of requests not stated: {CLOSED_LOOP_ROUNDS} per client")
    elif load == "open_loop" and not count:
        count = OPEN_LOOP_REQUESTS
        assumptions.append(f"number of requests not stated: {OPEN_LOOP_REQUESTS}")
    if not count or (load == "closed_loop" and not concurrency):
        raise UserError(f"run '{record.run_id}': concurrency or num_requests not stated")
    if count > MAX_REQUESTS:
        raise UserError(f"run '{record.run_id}': {count:,} requests, at most {MAX_REQUESTS:,} can be replayed")
    in_flight = {"closed_loop": min(concurrency or count, count), "open_loop": 0}.get(load, count)
    return count, in_flight, assumptions


def _lengths(record: RunRecord, n: int, max_model_len: int | None) -> tuple[np.ndarray, np.ndarray, float, list[str]]:
    """(prompt tokens (n,), output tokens (n,), share of a prompt that is shared, assumptions)."""
    where, spread = f"run '{record.run_id}'", record.length_spread or ""
    share, assumptions, one_text = 0.0, [], record.load == "parallel_sampling"
    if spread.startswith("uniform:"):
        draw = _uniform(spread.removeprefix("uniform:"), where)
        draws = [draw, draw]
    elif spread.startswith("dataset:"):
        name = spread.removeprefix("dataset:")
        found, told = datasets().get(name, UNKNOWN_SPREAD), _told_spread(record, where)
        input_cv, output_cv = told.get("input", found.input_cv), told.get("output", found.output_cv)
        draws, share = [_lognormal(input_cv), _lognormal(output_cv)], found.shared_prefix_share
        assumptions += _assumed_of(name, told, share)
    elif spread in ("", "fixed"):
        draws = [np.ones_like, np.ones_like]
        if not spread and record.load in ("closed_loop", "open_loop"):
            # Equal lengths would keep all clients in step for ever, which no server of real clients shows.
            draws = [_uniform(str(UNSTATED_UNIFORM), where)] * 2
            assumptions.append(f"length spread not stated: uniform on [{UNSTATED_UNIFORM} L, L]")
        elif not spread:
            assumptions.append("length spread not stated: fixed lengths")
    else:
        raise UserError(f"{where}: length_spread is '{spread}', expected fixed, uniform:r or dataset:NAME")
    rng = np.random.default_rng(SEED)
    relative = [draw((rng.permutation(n) + 0.5) / n) for draw in draws]  # one draw from each n-th of the distribution
    limit = max_model_len or None
    if limit and record.input_tok + record.output_tok > limit:
        raise UserError(f"{where}: input_tok + output_tok exceed max_model_len ({limit})")
    if one_text:
        prompt, share = np.full(n, max(1, round(record.input_tok)), dtype=np.int64), 1.0
    else:
        # A prompt leaves room for an output of mean length, unless it is of the mean length itself.
        room = max(limit - record.output_tok, np.ceil(record.input_tok)) if limit else np.inf
        prompt = _whole(relative[0], record.input_tok, np.full(n, room))
    prompt = np.minimum(prompt, limit - 1) if limit else prompt
    output = _whole(relative[1], record.output_tok, limit - prompt if limit else np.full(n, np.inf))
    return prompt, output, share, assumptions


def _told_spread(record: RunRecord, where: str) -> dict[str, float]:
    """The coefficients of variation that `calibrate collect` has measured, of "input" and "output"; UserError: bad."""
    found = {}
    for name in ("input", "output"):
        text = record.flag_value(f"{name}_cv:")
        if text is None:
            continue
        try:
            found[name] = float(text)
        except ValueError:
            found[name] = -1.0
        if not 0.0 <= found[name] <= MOST_CV:
            raise UserError(f"{where}: flag '{name}_cv:{text}', expected a number from 0 to {MOST_CV:g}")
    return found


def _assumed_of(name: str, told: dict[str, float], share: float) -> list[str]:
    """What of a data set's lengths is assumed, beside what the record tells."""
    if not told:
        return [f"lengths lognormal with the spread assumed for {name}"]
    missing = [which for which in ("input", "output") if which not in told]
    found = [f"{which} lengths lognormal with the spread assumed for {name}" for which in missing]
    return found + ([f"share of the prompts that is alike as assumed for {name}"] if share else [])


def _uniform(text: str, where: str):
    try:
        r = float(text)
    except ValueError:
        r = -1.0
    if not 0.0 <= r <= 1.0:
        raise UserError(f"{where}: length_spread is 'uniform:{text}', expected uniform:r with r from 0 to 1")
    return lambda quantile: 2.0 * (r + (1.0 - r) * quantile) / (1.0 + r)


def _lognormal(cv: float):
    """Quantile function of a lognormal with mean 1 and this coefficient of variation."""
    sigma = np.log1p(cv * cv) ** 0.5
    return lambda quantile: np.exp(sigma * ndtri(quantile) - sigma * sigma / 2.0)


def _whole(relative: np.ndarray, mean: float, most: np.ndarray) -> np.ndarray:
    """Whole lengths from 1 to `most` that are proportional to `relative` before the cut and keep the mean.

    The sum is round(n * mean) wherever the bounds allow it: rounding errors are handed on from one to the next.
    """
    most = np.floor(most)
    exact = relative * (mean / relative.mean())
    for _ in range(50):  # scale up what the cut has taken away
        exact = np.clip(exact, 1.0, most)
        if abs(exact.mean() / mean - 1.0) < 1e-9:
            break
        exact = exact * (mean / exact.mean())
    ends = np.floor(np.cumsum(exact) + 0.5 + 1e-6)
    return np.clip(np.diff(ends, prepend=0.0), 1.0, most).astype(np.int64)
