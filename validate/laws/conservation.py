"""Family 5: nothing is lost and nothing comes from nowhere: tokens, KV blocks, seconds, joules, work, requests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from simulator.engine.batcher import Batcher
from simulator.engine.token_by_token import TokenByToken
from simulator.steps import Steps
from simulator.traffic.cluster import Deployment
from simulator.traffic.series import time_series
from simulator.traffic.served import Served
from simulator.workload.traffic import Traffic
from validate.laws.bounds import Floors
from validate.laws.law import Family, Law, Result
from validate.laws.runs import BELOW_SATURATION, Runs, percent
from validate.laws.subjects import Subject

BLIS = "conservation laws of serving, as on BLIS's invariants page"
FEW = 10  # requests that the slow scheduler follows token by token

WRITTEN = Law(
    "5.1", "tokens out", "The steps of a run write the tokens that its requests asked for.",
    "sum of sampled = sum of output_tok", BLIS, "tok",
)  # fmt: skip
READ = Law(
    "5.2", "tokens computed", "They compute every token once, less what was cached, and what a preemption lost again.",
    "sum of prefill_tok + decode_sequences = sum of prompt_tok - cached_tok + output_tok - 1 + recomputed_tok", BLIS,
    "tok",
)  # fmt: skip
FREED = Law("5.3", "KV blocks", "At the end of a run every KV block is free.", "blocks held = 0", BLIS, "blocks")
HELD = Law(
    "5.4",
    "KV capacity",
    "At no time are more KV blocks held than exist.",
    "blocks held <= kv_blocks",
    BLIS,
    "blocks",
)
BREAKDOWN = Law(
    "5.5", "breakdown", "The causes of a step's time add up to it.", "sum of shares = step", "docs/physics.md", "s"
)
ENERGY = Law(
    "5.6", "energy", "The energy of a run is that of its steps and of idling between them, and the integral of power.",
    "E = sum of step J + idle_w x idle s = integral of P dt", BLIS, "J",
)  # fmt: skip
WORK = Law(
    "5.7", "work", "A run lasts at least as long as its FLOPs take at the peak of all devices.",
    "busy s >= sum of FLOPs / (n peak)", "work conservation", "s",
)  # fmt: skip
NO_REST = Law(
    "5.8", "no rest", "The server rests only while nobody is there.",
    "busy s = time with a request inside", "work conservation", "s",
)  # fmt: skip
LITTLE = Law(
    "5.9", "Little's law", "The mean number of sequences that decode is their rate times the mean time that they do.",
    "L = lambda W: integral of decode_sequences dt = sum of (finished - first token)", "Little 1961", "1",
)  # fmt: skip
BUSY = Law(
    "5.10", "utilisation", "No replica works on two stretches at once.", "busy s <= end, starts >= ends before",
    "work conservation", "s",
)  # fmt: skip
TOKENS = Law(
    "5.11", "token by token", "Jumping from event to event and following every token give the same times.",
    "times(jumps) = times(step by step)", "docs/traffic.md", "s",
)  # fmt: skip

FAMILY = Family(
    "Conservation",
    f"The run at {percent(BELOW_SATURATION)} of capacity; twelve requests at once with KV blocks for about four, so "
    f"that some are preempted; {FEW} requests followed token by token.",
    (WRITTEN, READ, FREED, HELD, BREAKDOWN, ENERGY, WORK, NO_REST, LITTLE, BUSY, TOKENS),
)


def check(subject: Subject, runs: Runs) -> Iterator[Result]:
    """One result per law."""
    calm, tight = runs.curve[BELOW_SATURATION], runs.tight
    both, names = (calm, tight), (f"load {percent(BELOW_SATURATION)}", "few KV blocks")
    yield WRITTEN.equal([_sampled(run) for run in both], [run.requests.output_tok.sum() for run in both], names)
    yield READ.equal([_computed(run) for run in both], [_to_compute(run) for run in both], names)
    yield FREED.equal([left_blocks(subject, runs)], 0.0, names[1:])
    yield HELD.at_most([run.steps.kv_blocks.max() for run in both], [run.kv_blocks for run in both], names)
    yield from _breakdown(subject)
    integral = [float(_integral_j(run)) for run in both]
    yield ENERGY.equal([run.energy_j() for run in both], integral, names)
    yield WORK.at_least([run.steps.duration_s.sum() for run in both], [_flop_s(subject, run) for run in both], names)
    yield NO_REST.equal(calm.steps.duration_s.sum(), _inside_s(calm))
    yield LITTLE.equal(*_decoding_s(runs))
    yield BUSY.at_least(*_apart(calm))
    yield _token_by_token(subject, runs)


def _sampled(run: Served) -> int:
    return int(run.steps.sampled @ run.steps.steps)


def _computed(run: Served) -> int:
    return int((run.steps.prefill_tok + run.steps.decode_sequences) @ run.steps.steps)


def _to_compute(run: Served) -> int:
    """The last token that a request writes is never computed."""
    requests = run.requests
    tokens = requests.prompt_tok - requests.cached_tok + requests.output_tok - 1 + requests.recomputed_tok
    return int(tokens.sum())


def left_blocks(subject: Subject, runs: Runs) -> int:
    """KV blocks that are still held when a run with preemptions has ended."""
    made: list[Batcher] = []
    plain = subject.deployment.batcher

    def remembered(deployment: Deployment) -> Batcher:
        made.append(plain(deployment) if plain else _batcher(deployment))
        return made[-1]

    subject.run(runs.burst, settings=runs.settings, kv_blocks=runs.few_blocks, batcher=remembered)
    made[0].plan()  # sees the last finish, and plans nothing
    return made[0].planned_blocks


def _batcher(deployment: Deployment) -> Batcher:
    costs = deployment.costs
    return Batcher(
        deployment.settings, deployment.kv_blocks, costs.rules, deployment.async_scheduling, deployment.micro_batches
    )


def _breakdown(subject: Subject) -> Iterator[Result]:
    lengths = [length for length in (1, 100, 1000) if length < subject.longest_tok]
    steps = Steps.concatenate(
        [subject.decode_steps([1.0, 16.0, 64.0], 1000), subject.prefill_steps([1] * len(lengths), lengths)]
    )
    costs = subject.physics.price(steps)
    where = ["batch 1", "batch 16", "batch 64", *(f"prompt {length}" for length in lengths)]
    yield BREAKDOWN.equal(sum(costs.shares.values()), costs.seconds, where)


def _integral_j(run: Served) -> float:
    series = time_series(run)
    return float(series.power_w @ np.diff(series.edges_s))


def _flop_s(subject: Subject, run: Served) -> float:
    """Shortest time [s] of the linear layers of a run; attention is left out."""
    floors, requests = Floors(subject.instance), run.requests
    tokens = float((requests.prompt_tok - requests.cached_tok + requests.output_tok - 1).sum())
    return float(floors.linear_flop(tokens, float(requests.output_tok.sum()))) / floors.peaks()[0]


def _inside_s(run: Served) -> float:
    """How long at least one request was in the engine: the union of their stays."""
    requests = run.requests
    order = np.argsort(requests.engine_s)
    starts, ends = requests.engine_s[order], np.maximum.accumulate(requests.finished_s[order])
    before = np.concatenate(([-np.inf], ends[:-1]))
    return float(np.clip(ends - np.maximum(starts, before), 0.0, None).sum())


def _decoding_s(runs: Runs) -> tuple[float, float]:
    """(integral of sequences that decode, sum of the times that requests do) [s], both over the length of the run.

    Of the fullest run in which nobody is preempted: who has lost his blocks is between two tokens, and does not decode.
    """
    calm = [run for load, run in sorted(runs.curve.items()) if not run.requests.preemptions.any()]
    run = calm[-1] if calm else runs.lone.served
    spent = run.requests.finished_s - run.requests.first_token_s
    return float(run.steps.duration_s @ run.steps.decode_sequences) / run.end_s, float(spent.sum()) / run.end_s


def _apart(run: Served) -> tuple[np.ndarray, np.ndarray]:
    """(starts, ends before them) of stretches, and with them the end of the run."""
    steps = run.steps
    ends = steps.start_s + steps.duration_s
    return np.append(steps.start_s[1:], run.end_s), np.append(ends[:-1], ends.max())


def _token_by_token(subject: Subject, runs: Runs) -> Result:
    prompts, outputs = runs.texts(FEW)
    traffic = Traffic(prompts, outputs // 2, runs.arrivals(BELOW_SATURATION).arrival_s[:FEW])
    settings = replace(runs.settings, max_num_seqs=4)

    def slow(deployment: Deployment) -> TokenByToken:
        return TokenByToken(
            deployment.settings, deployment.kv_blocks, deployment.costs.rules, deployment.async_scheduling,
            micro_batches=deployment.micro_batches,
        )  # fmt: skip

    jumping, following = (
        subject.run(traffic, settings=settings, batcher=batcher) for batcher in (subject.deployment.batcher, slow)
    )
    times = [np.concatenate((run.requests.first_token_s, run.requests.finished_s)) for run in (jumping, following)]
    return TOKENS.equal(*times)
