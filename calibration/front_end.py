"""What a request spends outside the engine before its first token: its client, HTTP, the tokeniser."""

from __future__ import annotations

from collections.abc import Mapping

from calibration.setup import Setup
from calibration.workloads import CLOSED_LOOP_ROUNDS
from simulator.engine.front_end import TOGETHER
from simulator.overheads import EngineParameters


def front_end_s(setup: Setup, engine: EngineParameters) -> tuple[float, float, float]:
    """(seconds of a request that comes alone, further ones of a request of the opening burst, share of those)."""
    prompt_s = engine.prompt_tok_s * setup.input_tok
    record, at_once = setup.record, setup.batch
    if not setup.server or record.load not in ("closed_loop", "burst") or at_once < 2:
        return engine.request_s + prompt_s, 0.0, 0.0
    total = record.num_requests or (CLOSED_LOOP_ROUNDS * at_once if record.load == "closed_loop" else at_once)
    share = 1.0 if record.load == "burst" else min(1.0, at_once / total)
    return engine.request_s + prompt_s, prompt_s * (min(at_once, TOGETHER) - 1), share


def with_front_end(values: Mapping[str, float], setup: Setup, engine: EngineParameters) -> dict[str, float]:
    """Metrics with what requests spend outside the engine before their first token."""
    alone, further, share = front_end_s(setup, engine)

    def added(name: str) -> float:
        if not name.startswith(("ttft", "e2e")):
            return 0.0
        of_burst = share if name.endswith("_mean") else float(share >= (0.5 if name.endswith("_median") else 0.01))
        return alone + of_burst * further

    return {name: value + added(name) for name, value in values.items()}
