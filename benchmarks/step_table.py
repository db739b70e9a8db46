"""How far tabulated step costs are from the physics behind them: python benchmarks/step_table.py

Random batches of up to 150 sequences, alike or spread over three decades of context. Error = table / physics - 1.
"""

from __future__ import annotations

import numpy as np

from simulator.batch import Batch, PrefillChunk
from simulator.scenario import Scenario, prepare
from simulator.step_table import StepTable

DEPLOYMENTS = (
    ("h100", "qwen3-8b", {}),
    ("a100", "llama-2-7b", {}),
    ("h100", "gpt-oss-120b", {}),
    ("h100", "llama-3.3-70b", {"tensor_parallel_size": 4}),
    ("h100", "nemotron-nano-9b-v2", {}),
    ("orin", "llama-3.1-8b", {"power_mode": "30W"}),
)
BATCHES, LONGEST_TOK = 400, 16_384


def batches(longest: int):
    """Contexts (n,) of random batches."""
    rng = np.random.default_rng(0)
    for _ in range(BATCHES):
        n, typical = int(rng.integers(1, 150)), np.exp(rng.uniform(np.log(5), np.log(longest / 2 - 2)))
        spread = np.exp(rng.uniform(np.log(5), np.log(longest - 2), n)).astype(np.int64)
        yield spread if rng.random() < 0.5 else rng.integers(int(typical), int(2 * typical) + 1, n)


def errors(gpu: str, model: str, more: dict) -> tuple[np.ndarray, np.ndarray]:
    """Errors of the seconds of (decode steps, steps with a prompt), shape (BATCHES,) each."""
    setup = prepare(Scenario(gpu, "single", model=model, **more))
    physics, longest = setup.step_model, min(setup.settings.max_model_len, LONGEST_TOK)
    costs, rng, found = StepTable(physics, longest), np.random.default_rng(1), []
    for contexts in batches(longest):
        keys = [int(rule.decode_keys_now(contexts)) for rule in physics.rules]
        chunk = PrefillChunk(int(rng.integers(1, 2000)), int(rng.integers(0, 500)))
        decode, mixed = physics.step(Batch((), contexts)), physics.step(Batch((chunk,), contexts))
        tabled = costs.mixed(len(contexts), keys, [(None, chunk.new_tok, chunk.cached_tok, True)])[2]
        found.append((costs.decode(len(contexts), keys)[0] / decode.seconds - 1.0, tabled / mixed.seconds - 1.0))
    return tuple(np.array(found).T)


def main() -> None:
    """Print one line per deployment and kind of step."""
    print(f"{'':<34} {'steps':<12} {'n':>4} {'bias':>8} {'median':>8} {'p90':>8} {'largest':>8}")
    for gpu, model, more in DEPLOYMENTS:
        for kind, found in zip(("decode", "with prefill"), errors(gpu, model, more)):
            size = np.abs(found)
            figures = (found.mean(), np.median(size), np.quantile(size, 0.9), size.max())
            print(f"{gpu + ' ' + model:<34} {kind:<12} {len(found):>4} "
                  + " ".join(f"{100 * figure:>6.3f} %" for figure in figures))  # fmt: skip


if __name__ == "__main__":
    main()
