"""Family 1: one request alone on a server, between what the data sheet allows and what measured engines need."""

from __future__ import annotations

from collections.abc import Iterator

from simulator.batch import Batch, PrefillChunk
from validate.laws.bounds import Floors
from validate.laws.law import Family, Law, Result
from validate.laws.runs import Runs
from validate.laws.subjects import OUTPUT_TOK, PROMPT_TOK, Subject

ROOFLINE = "Williams, Waterman, Patterson 2009 (roofline)"
MEASURED = "measured runs in calibration/data/runs, see validate/laws/bounds.py"

TTFT_COMPUTE = Law(
    "1.1", "first token, arithmetic", "A prompt takes at least its FLOPs at the peak of all devices.",
    "TTFT >= (2 P_active L + attention) / (n peak)", ROOFLINE, "s",
)  # fmt: skip
TTFT_BYTES = Law(
    "1.2", "first token, bytes", "A prompt takes at least one read of the weights that it touches.",
    "TTFT >= weights / (n bandwidth)", ROOFLINE, "s",
)  # fmt: skip
TTFT_CEILING = Law(
    "1.3", "first token, ceiling", "A first token takes no longer than in the slowest engine that was measured.",
    "TTFT <= max(FLOPs / (n peak), weights / (n bandwidth)) / 0.15 + messages / link / (0.05 through a host, else 0.4) "
    "+ layers x 0.15 ms (x 2 with messages) + 25 ms + L x 20 us", MEASURED, "s",
)  # fmt: skip
TPOT_BYTES = Law(
    "1.4", "time per token, bytes", "A token of a lone sequence takes at least one read of weights and KV cache.",
    "TPOT >= (weights + KV) / (n bandwidth)", ROOFLINE, "s",
)  # fmt: skip
TPOT_CEILING = Law(
    "1.5", "time per token, ceiling", "It takes no longer than in the slowest engine that was measured.",
    "TPOT <= (weights + KV) / (n bandwidth) / 0.35 + FLOPs / (n peak) / 0.15 + messages / link / (0.05 or 0.4) "
    "+ layers x 0.15 ms (x 2 with messages) + 0.1 ms", MEASURED, "s",
)  # fmt: skip
FLIGHT = Law(
    "1.6", "engine = physics", "A lone request takes what its steps cost, one after the other, between its ways in.",
    "E2E = request_s + L prompt_tok_s + step(L) + sum of decode steps", "docs/traffic.md; table of step costs", "s",
    tolerance=0.01,
)  # fmt: skip

FAMILY = Family(
    "Unloaded latency",
    f"One request of {PROMPT_TOK:,} prompt and {OUTPUT_TOK} output tokens, alone.",
    (TTFT_COMPUTE, TTFT_BYTES, TTFT_CEILING, TPOT_BYTES, TPOT_CEILING, FLIGHT),
)


def check(subject: Subject, runs: Runs) -> Iterator[Result]:
    """One result per law."""
    floors, lone = Floors(subject.instance), runs.lone
    computing, reading = floors.prefill_s(PROMPT_TOK)
    yield TTFT_COMPUTE.at_least(lone.ttft_s, computing)
    yield TTFT_BYTES.at_least(lone.ttft_s, reading)
    yield TTFT_CEILING.at_most(lone.ttft_s, floors.prefill_ceiling_s(PROMPT_TOK))
    middle = PROMPT_TOK + OUTPUT_TOK // 2
    yield TPOT_BYTES.at_least(lone.tpot_s, floors.decode_s(1.0, middle)[1])
    yield TPOT_CEILING.at_most(lone.tpot_s, floors.decode_ceiling_s(1.0, middle))
    yield FLIGHT.equal(lone.e2e_s, _one_by_one_s(subject))


def _one_by_one_s(subject: Subject) -> float:
    """The same request, its steps priced by the physics itself."""
    way_in = subject.deployment.request_s + subject.deployment.prompt_tok_s * PROMPT_TOK
    contexts = range(PROMPT_TOK, PROMPT_TOK + OUTPUT_TOK - 1)
    decoding = subject.physics.price(subject.decode_steps([1.0] * len(contexts), list(contexts))).seconds.sum()
    budget, done, reading = subject.deployment.settings.max_num_batched_tokens, 0, 0.0
    while done < PROMPT_TOK:
        new = min(budget, PROMPT_TOK - done)
        reading += subject.price_batch(Batch((PrefillChunk(new, done, done + new == PROMPT_TOK),)))
        done += new
    return way_in + reading + float(decoding)
