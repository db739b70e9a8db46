"""ParScale: its authors' own cost model, cell by cell, and what parallel streams save over a larger model."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean

import msgspec
import numpy as np

from simulator.batch import Batch, PrefillChunk
from simulator.device import load_device
from simulator.engine import EngineSettings
from simulator.flight import fly
from simulator.memory import kv_byte_per_tok, weights_byte
from simulator.model import Model
from simulator.model.fields import Fields
from simulator.model.huggingface import model_from_fields
from simulator.operators import STREAM_PREFIX_TOK, merging_parameters
from simulator.parameters import with_values
from simulator.precision import Precision
from simulator.profile import Calibration
from simulator.profile_choice import load_calibration
from simulator.step import StepModel
from validate.published.comparison import Comparison
from validate.published.numbers import Number, number, numbers

TITLE = "ParScale (arXiv:2505.10475)"
ABOUT = (
    "Costs of 1 to 8 parallel streams by the authors' script on llm-analysis, run again over its grid of 768 cells, "
    "beside the step model at the same efficiencies. The target is another model's output under its own accounting: "
    "this tests a roofline and says nothing of a GPU."
)
TOLERANCE = 0.10
GRID = Path(__file__).with_name("parscale_grid.csv")
GPU = "a100-sxm-80gb"
SHAPES = {"1.6B": (1536, 8320), "2.8B": (2048, 11008), "4.4B": (2560, 13824)}  # hidden and feed-forward width
HALF_BYTE = 2.0  # of a 16-bit number
CONVENTIONS = (
    "as llm-analysis counts: every step reads the whole KV cache twice, at its final length",
    "as the authors' script counts: prefix tokens are computed with the prompt, and logits at every position of it",
)
ACTIVATIONS = "as llm-analysis counts: of the activations only the largest tensor, the logits of the whole prompt"
SETUP = f"step model on {GPU}: 0.7 of the peak, 0.9 of the bandwidth, nothing else takes time"
# A pure roofline: the two efficiencies that the authors state, no start, no latency, no tile, no host.
ROOFLINE = {
    "gemm16": {
        "compute_fraction": 0.7, "sustained_fraction": 1.0, "memory_fraction": 0.9, "memory_ramp_s": 1e-12,
        "skinny_gain": 1.0, "roof_exponent": 30.0, "start_s": 0.0, "wave_share": 0.0, "tile_overhead": 0.0,
        "inner_overhead": 0.0, "inner_latency_s": 0.0, "split_s": 0.0,
    },
    "prefill": {
        "matrix_fraction": 0.7, "softmax_per_cycle": 1e9, "bandwidth_fraction": 0.9, "write_fraction": 0.9,
        "l2_speedup": 1.0, "exponent": 30.0, "start_s": 0.0, "start_width_s": 0.0, "diagonal_keys": 0.0,
        "block_s": 0.0, "tail": 0.0,
    },
    "decode": {
        "bandwidth_fraction": 0.9, "token_fraction": 0.9, "exponent": 30.0, "start_s": 0.0, "start_width_s": 0.0,
        "regroup_s": 0.0, "combine_s": 0.0, "block_s": 0.0, "block_width_s": 0.0, "key_cycles": 0.0,
        "key_width_cycles": 0.0,
    },
    "engine": {
        "small_kernel_s": 0.0, "eager_launch_s": 0.0, "step_host_s": 0.0, "sequence_host_s": 0.0,
        "prefill_host_s": 0.0, "sampler_start_s": 0.0, "sampler_passes": 1.0,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One cell of the grid: a batch of prompts of one length, and what the authors' script says of it."""

    size: str
    batch: int
    streams: int
    input_tok: int
    output_tok: int
    memory_gib: float
    latency_s: float

    @property
    def prefix_tok(self) -> int:
        return STREAM_PREFIX_TOK if self.streams > 1 else 0


def compare() -> list[Comparison]:
    """Means over lengths as published in the figure, all cells, the strategy flown, and the headline."""
    return [*_means("latency", "s"), *_means("memory", "GiB"), *_cells(), *_flown(), *_headline()]


# -- the authors' accounting -------------------------------------------------------------------------------------


def latency_s(cell: Cell) -> float:
    """Seconds of a cell by the step model, under the authors' accounting (`CONVENTIONS`)."""
    physics, prefix = step_model(cell.size, cell.streams), cell.prefix_tok
    prompt = PrefillChunk(cell.input_tok + prefix, logits_tok=cell.input_tok + prefix * cell.streams)
    # A step attends to context + 1 tokens, behind the prefix that the step model adds by itself.
    twice = 2 * (cell.input_tok + cell.output_tok + prefix) - 1 - prefix
    step_s = physics.step(Batch((), np.full(cell.batch, twice))).seconds
    return physics.step(Batch((prompt,) * cell.batch)).seconds + cell.output_tok * step_s


def memory_gib(cell: Cell) -> float:
    """GiB of a cell: weights, merging network, KV cache of all streams, and the logits of the prompt."""
    shape, precision = model(cell.size), Precision("bf16", "bf16", "bf16")
    merging = HALF_BYTE * merging_parameters(shape.hidden_size, cell.streams)
    length = cell.input_tok + cell.prefix_tok
    kv = kv_byte_per_tok(shape, precision) * cell.batch * cell.streams * (length + cell.output_tok)
    logits = HALF_BYTE * shape.vocab_size * cell.batch * length
    return (weights_byte(shape, precision) + merging + kv + logits) / 2**30


@cache
def model(size: str) -> Model:
    """The paper's model of this size: 36 layers, 16 heads, 2 KV heads, one table for embedding and head."""
    hidden, ffn = SHAPES[size]
    config = {
        "model_type": "qwen2", "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
        "max_position_embeddings": 2048, "torch_dtype": "bfloat16",
    }  # fmt: skip
    return model_from_fields(Fields(config, f"ParScale {size}"), f"ParScale {size}")


@cache
def step_model(size: str, streams: int) -> StepModel:
    """Physics of a model with so many streams under the pure roofline."""
    precision = Precision("bf16", "bf16", "bf16")
    return StepModel(model(size), load_device(GPU), precision, roofline(), sampler="greedy", streams=streams)


@cache
def roofline() -> Calibration:
    """The A100's profile with everything that is no roofline set to nothing."""
    profile = load_calibration(load_device(GPU))
    values = {f"{group}.{name}": value for group, of in ROOFLINE.items() for name, value in of.items()}
    return msgspec.structs.replace(profile, parameters=with_values(profile.parameters, values))


@cache
def grid() -> tuple[Cell, ...]:
    """Every cell of parscale_grid.csv."""
    with open(GRID, newline="", encoding="utf-8") as file:
        return tuple(
            Cell(
                r["size"],
                int(r["bs"]),
                int(r["P"]),
                int(r["in"]),
                int(r["out"]),
                float(r["mem_GiB"]),
                float(r["lat_s"]),
            )
            for r in csv.DictReader(file)
        )


# -- comparisons ---------------------------------------------------------------------------------------------------


def _means(metric: str, unit: str) -> list[Comparison]:
    """Means over the 16 pairs of lengths, by size, streams and batch: the markers of the authors' figure."""
    found = []
    for row in numbers(strategy="ParScale", metric=metric, unit=unit):
        size, streams, batch = _setting(row)
        cells = [c for c in grid() if (c.size, c.streams, c.batch) == (size, streams, batch)]
        simulated = mean(latency_s(c) if metric == "latency" else memory_gib(c) for c in cells)
        found.append(_row(f"{metric}, {size}, P = {streams}, batch {batch}", row, simulated, _assumed(metric)))
    return found


def _setting(row: Number) -> tuple[str, int, int]:
    """(size, streams, batch) of a row: model "1.6B ...", config "P=8 batch=2; mean over ..."."""
    streams, batch = row.config.partition(";")[0].split()
    return row.model.split()[0], int(streams.removeprefix("P=")), int(batch.removeprefix("batch="))


def _cells() -> list[Comparison]:
    """How many of the cells are within the tolerance, one by one."""
    latency = [latency_s(cell) / cell.latency_s - 1 for cell in grid()]
    memory = [memory_gib(cell) / cell.memory_gib - 1 for cell in grid()]
    return [
        Comparison(
            "parscale", f"cells of the grid within 10 %, {metric}", "cells", float(len(errors)),
            float(sum(abs(error) <= TOLERANCE for error in errors)), 0.0, "at least",
            status="derived", source="all cells of the authors' script, run again", setup=SETUP,
            assumed=_assumed(metric), reason=f"worst cell {max(errors, key=abs):+.1%}",
            kind="re-implementation",
        )
        for metric, errors in (("latency", latency), ("memory", memory))
    ]  # fmt: skip


def _flown() -> list[Comparison]:
    """The strategy itself at batch 1, with a KV cache that is read once, at the length that it has."""
    found = []
    for row in numbers(strategy="ParScale", metric="latency"):
        size, streams, batch = _setting(row)
        if batch == 1:
            simulated = mean(flown_s(size, streams, c.input_tok, c.output_tok) for c in _lengths())
            quantity = f"latency, {size}, P = {streams}, batch 1, strategy flown"
            found.append(_row(quantity, row, simulated, ("the strategy reads the KV cache once, at its length",)))
    return found


def _lengths() -> list[Cell]:
    """One cell for each pair of input and output lengths."""
    return [cell for cell in grid() if (cell.size, cell.batch, cell.streams) == ("1.6B", 1, 1)]


@cache
def flown_s(size: str, streams: int, input_tok: int, output_tok: int) -> float:
    """Wall time of the strategy on one prompt."""
    parameters = {"streams": streams, "problem_tok": input_tok, "thinking_tok": output_tok - 1, "answer_tok": 1}
    return fly(step_model(size, streams), 100_000, EngineSettings(), "parscale", parameters, 1)[0].wall_s


def _headline() -> list[Comparison]:
    """Memory and latency that a larger model of equal loss costs more, over what 8 streams cost more."""
    assumed = ("equal loss: between 2.8B and 4.4B by Stack-V2 losses, linear in log parameters; costs linear in size",)
    memory = number(strategy="ParScale P=8", metric="memory increase ratio vs parameter scaling")
    latency = number(strategy="ParScale P=8", metric="latency increase ratio vs parameter scaling")
    saved = "saved over a model of equal loss, 1.6B, P = 8"
    return [
        _row(f"memory {saved}", memory, _saved(memory_gib), (*_assumed("memory"), *assumed)),
        _row(f"latency {saved}", latency, _saved(latency_s), (*_assumed("latency"), *assumed)),
        _derived(f"memory {saved}, from the grid", _saved(lambda c: c.memory_gib), _saved(memory_gib), assumed),
        _derived(f"latency {saved}, from the grid", _saved(lambda c: c.latency_s), _saved(latency_s), assumed, SMALL),
        _row(f"latency {saved}, strategy flown", latency, _saved(_flown_cell_s), assumed, READ_ONCE),
    ]


READ_ONCE = "with a KV cache that is read once, streams cost less than their authors say"
SMALL = (
    "a quotient of small differences: to 482 ms eight streams add 79 ms here and 66 ms by the authors' script; these "
    "13 ms are 2 % of a cell, which is met, and 16 % of the ratio. The 6 that is printed is itself 11 % below the "
    "6.73"
)


def _derived(quantity: str, published: float, simulated: float, assumed: tuple[str, ...], off: str = "") -> Comparison:
    """The headline by our interpolation of the authors' own cells."""
    return Comparison(
        "parscale", quantity, "ratio", published, simulated, TOLERANCE, status="derived",
        source="all cells of the authors' script, run again", setup=SETUP, assumed=assumed, known_miss=off,
        kind="re-implementation",
    )  # fmt: skip


def _saved(cost: Callable[[Cell], float]) -> float:
    """What a larger model of equal loss adds to a cost, over what 8 streams add, in the mean over lengths."""

    def of(size: str, streams: int) -> float:
        return mean(cost(c) for c in grid() if (c.size, c.streams, c.batch) == (size, streams, 1))

    share, base = _equal_loss(), of("1.6B", 1)
    larger = (1 - share) * of("2.8B", 1) + share * of("4.4B", 1)
    return (larger - base) / (of("1.6B", 8) - base)


def _flown_cell_s(cell: Cell) -> float:
    return flown_s(cell.size, cell.streams, cell.input_tok, cell.output_tok)


def _equal_loss() -> float:
    """Where between 2.8B and 4.4B, in parameters outside the embedding, one stream reaches the loss of 8 x 1.6B."""
    small, large = (model(size).parameters() - model(size).embedding_parameters() for size in ("2.8B", "4.4B"))
    streams, medium, larger = (
        number(strategy="ParScale", model=size, metric="loss on Stack-V2 (Python)").value for size in SHAPES
    )
    along = (medium - streams) / (medium - larger)
    return (math.exp((1 - along) * math.log(small) + along * math.log(large)) - small) / (large - small)


def _assumed(metric: str) -> tuple[str, ...]:
    return CONVENTIONS if metric == "latency" else (ACTIVATIONS,)


def _row(
    quantity: str,
    published: Number,
    simulated: float,
    assumed: tuple[str, ...],
    off: str = "",
) -> Comparison:
    return Comparison(
        "parscale", quantity, "ratio" if published.unit == "x" else published.unit, published.value, simulated,
        TOLERANCE, status=published.status, source=published.source, setup=SETUP, assumed=assumed, known_miss=off,
        kind="re-implementation",
    )  # fmt: skip
