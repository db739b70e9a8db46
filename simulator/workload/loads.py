"""Synthetic traffic: one builder for each kind of load that a serving benchmark knows.

All draw from independent streams spawned from one generator: the same seed gives the same prompts whatever the
arrivals or the answers are, so that two runs differ only in what was changed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.errors import UserError
from simulator.workload.arrivals import Arrivals, parse_arrivals
from simulator.workload.arrivals import burst as all_at_once
from simulator.workload.lengths import Lengths, parse_lengths
from simulator.workload.traffic import Parts, Traffic, counted

MAX_REQUESTS = 10_000_000

Lengthlike = Lengths | str | int  # whatever `parse_lengths` takes


@dataclass(frozen=True)
class SharedPrefix:
    """Prompts of which the first `tokens` tokens are those of one of `groups` texts, drawn evenly; `prompt` follows."""

    prompt: Lengthlike
    tokens: int
    groups: int = 1


Prompts = Lengthlike | SharedPrefix


def static_batch(batch: int, prompt: Prompts, output: Lengthlike, rng: np.random.Generator) -> Traffic:
    """`batch` requests submitted together and run to completion."""
    texts = _draw(batch, "batch", prompt, output, rng)
    return texts.at(all_at_once(batch), f"a static batch of {batch:,}")


def burst(n: int, prompt: Prompts, output: Lengthlike, rng: np.random.Generator) -> Traffic:
    """n requests submitted at t = 0 to a server that runs at most max_num_seqs of them at a time."""
    texts = _draw(n, "number of requests", prompt, output, rng)
    return texts.at(all_at_once(n), f"a burst of {counted(n, 'request')}")


def closed_loop(concurrency: int, n: int, prompt: Prompts, output: Lengthlike, rng: np.random.Generator) -> Traffic:
    """n requests from `concurrency` clients; each sends its next request when its last one has ended."""
    clients = check_count(concurrency, "concurrency")
    texts = _draw(n, "number of requests", prompt, output, rng)
    return texts.from_clients(clients, f"{counted(clients, 'client')}, {counted(n, 'request')}")


def open_loop(
    arrivals: Arrivals | str | float, n: int, prompt: Prompts, output: Lengthlike, rng: np.random.Generator
) -> Traffic:
    """n requests that arrive as `arrivals` says (`parse_arrivals`), whatever the server does."""
    process = parse_arrivals(arrivals)
    arrival_rng, text_rng = rng.spawn(2)
    texts = _draw(n, "number of requests", prompt, output, text_rng)
    return texts.at(process.times(n, arrival_rng), f"{counted(n, 'request')}, {process.phrase()}")


def parallel_sampling(samples: int, prompt: Lengthlike, output: Lengthlike, rng: np.random.Generator) -> Traffic:
    """One prompt, `samples` sampled continuations of it at t = 0 (`n=` of vLLM).

    The prompt is shared wholly; its length is drawn once, the lengths of the answers one by one.
    """
    samples = check_count(samples, "number of samples")
    prompt_rng, output_rng = rng.spawn(2)
    prompt_tok = parse_lengths(prompt).draw(prompt_rng)
    return Traffic(
        prompt_tok=np.full(samples, prompt_tok, dtype=np.int64),
        output_tok=parse_lengths(output).sample(output_rng, samples),
        arrival_s=all_at_once(samples),
        shared_prefix=((("prompt", prompt_tok),),) * samples,
        title=f"{counted(samples, 'sample')} of one prompt",
        assumptions=("the samples are separate requests with one prompt: they share its KV through the prefix cache",),
    )


@dataclass(frozen=True)
class _Texts:
    """What is sent, without when."""

    prompt_tok: np.ndarray  # (N,)
    output_tok: np.ndarray  # (N,)
    shared_prefix: tuple[Parts, ...] | None

    def at(self, arrival_s: np.ndarray, title: str) -> Traffic:
        return Traffic(self.prompt_tok, self.output_tok, arrival_s, 0, self.shared_prefix, title=title)

    def from_clients(self, clients: int, title: str) -> Traffic:
        return Traffic(self.prompt_tok, self.output_tok, None, clients, self.shared_prefix, title=title)


def _draw(n: int, what: str, prompt: Prompts, output: Lengthlike, rng: np.random.Generator) -> _Texts:
    """n prompts and answers. The shared prefix stands in front of the drawn prompt, as `vllm bench` adds it."""
    n = check_count(n, what)
    prompt_rng, output_rng, group_rng = rng.spawn(3)
    lengths = prompt.prompt if isinstance(prompt, SharedPrefix) else prompt
    prompt_tok = parse_lengths(lengths).sample(prompt_rng, n)
    output_tok = parse_lengths(output).sample(output_rng, n)
    if not isinstance(prompt, SharedPrefix):
        return _Texts(prompt_tok, output_tok, None)
    prefix_tok = check_count(prompt.tokens, "shared prefix in tokens")
    groups = check_count(prompt.groups, "number of prefix groups")
    prefixes = [((("prefix", group), prefix_tok),) for group in range(groups)]
    chosen = group_rng.integers(0, groups, size=n).tolist()
    return _Texts(prompt_tok + prefix_tok, output_tok, tuple(prefixes[group] for group in chosen))


def check_count(value: object, what: str) -> int:
    """`value` as a whole number >= 1 that a simulation can still hold."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 1 <= value <= MAX_REQUESTS:
        raise UserError(f"the {what} must be a whole number from 1 to {MAX_REQUESTS:,}, got {value}")
    return int(value)
