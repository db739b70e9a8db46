"""A run of traffic under observation: what every stretch of steps consisted of, and who was in it when.

The records of a served run hold no contexts, so the run is served once more with schedulers that are looked over the
shoulder; it is the same run.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from simulator.batch import PrefillChunk
from simulator.engine.batcher import Batcher
from simulator.engine.batching import Batching
from simulator.keys import KeyRule
from simulator.steps import Steps
from simulator.traffic.cluster import Deployment, serve
from simulator.traffic.served import Served
from simulator.workload.traffic import Traffic

COLUMNS = ("decode_sequences", "prefill_sequences", "prefill_tok", "prefill_cached_tok", "sampled")


@dataclass
class Diary:
    """Of one replica: a row per stretch, in the order of `Served.steps`; `visits`: of requests, by rows."""

    rules: tuple[KeyRule, ...]
    columns: dict[str, array] = field(default_factory=lambda: {name: array("d") for name in COLUMNS})
    keys: dict[str, array] = field(
        default_factory=lambda: {name: array("d") for name in ("decode", "pairs", "prefill")}
    )
    rows: int = 0
    came: dict[int, int] = field(default_factory=dict)  # request -> first row that it is in
    first: dict[int, int] = field(default_factory=dict)  # row that wrote its first token
    ended: dict[int, int] = field(default_factory=dict)

    def note(self, batcher: Batching, steps: int) -> None:
        """The planned step is about to be run so often: a row with the means of its steps."""
        chunks, joins = batcher.chunks, batcher.joins
        sequences = batcher.decoding + len(joins)
        completes = sum(chunk[3] for chunk in chunks)
        values = (
            sequences, len(chunks), sum(chunk[1] for chunk in chunks), sum(chunk[2] for chunk in chunks),
            sequences + completes,
        )  # fmt: skip
        for column, value in zip(self.columns.values(), values):
            column.append(value)
        for rule, now, slope in zip(self.rules, batcher.keys(), batcher.slopes()):
            read = [rule.keys_read(PrefillChunk(new, cached)) for _, new, cached, _ in chunks]
            grown = slope * (steps - 1) / 2.0 if steps > 1 else 0.0
            self.keys["decode"].append(now + grown + sum(rule.keys_at(cached) for cached in joins))
            self.keys["pairs"].append(sum(pairs for pairs, _ in read))
            self.keys["prefill"].append(sum(keys for _, keys in read))
        for request in batcher.admitted:
            self.came.setdefault(request.number, self.rows)

    def close(self, batcher: Batching) -> None:
        """The row's steps have been run."""
        for request in batcher.first:
            self.first.setdefault(request.number, self.rows)
        for request in batcher.done:
            self.ended[request.number] = self.rows
        self.rows += 1

    def steps(self) -> Steps:
        """One row per stretch."""
        columns = {name: np.array(column) for name, column in self.columns.items()}
        decode, pairs, prefill = (np.array(keys).reshape(self.rows, len(self.rules)) for keys in self.keys.values())
        return Steps(**columns, decode_keys=decode, prefill_pairs=pairs, prefill_keys=prefill)


class _Watched:
    """A scheduler that does what it does, and writes a diary of it."""

    def __init__(self, batcher: Batching, diary: Diary) -> None:
        self._batcher, self._diary = batcher, diary

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batcher, name)

    def advance(self, steps: int) -> None:
        self._diary.note(self._batcher, steps)
        self._batcher.advance(steps)
        self._diary.close(self._batcher)


def watched(traffic: Traffic, deployment: Deployment) -> tuple[Served, list[Diary]]:
    """The served run, and a diary of each replica."""
    diaries: list[Diary] = []
    make = deployment.batcher or _jumping

    def batcher(of: Deployment) -> Batching:
        diaries.append(Diary(tuple(of.costs.rules)))
        return _Watched(make(of), diaries[-1])

    return serve(traffic, replace(deployment, batcher=batcher)), diaries


def _jumping(deployment: Deployment) -> Batcher:
    """The scheduler that serves where none is given."""
    return Batcher(
        deployment.settings, deployment.kv_blocks, deployment.costs.rules, deployment.async_scheduling,
        deployment.micro_batches,
    )  # fmt: skip
