"""The same command line, another number of KV blocks.

LLMServingSim replays 300 requests that vLLM 0.19.0 served on an RTX 4090 (Llama-3.1-8B, 10 requests/s; commit 5daddb2,
docs/docs/validation.md). Both were told gpu_memory_utilization 0.9. The engine first takes its activations, graphs and
workspace out of that and resolved 2,588 blocks of 16 tokens; the simulator, which has none of these, 3,400. The card is
full for most of the run: with more blocks more requests run at a time, slower, and wait less. Mean TTFT was -20.7 %,
TPOT +12.9 %, latency -12.5 % off the measurement; with the engine's number of blocks the same simulator is off by
+0.6, +0.2 and +0.5 %. Its model of time was right all along.

Here this simulator plays both sides: a "measurement" of such a load with 2,588 blocks, and another simulator that has
3,400: what the number of blocks does, and nothing else. The measurement gets a noise of 0.4 %, as repeats of an engine
have it; without, matched figures would be equal in every digit, and the suite would say that one column was copied.
No figure of the study goes in but its settings and the means of its lengths (857 prompt and 653 output tokens).
"""

import msgspec
import numpy as np
from case_studies import Story, judge

from calibration.records import METRICS, RunRecord
from validate.predict import Predictor

BLOCK_TOK = 16
NOISE = 0.004  # log standard deviation
RESOLVED, TAKEN = 2588, 3400
PUBLISHED = {  # errors, percent: (3,400 blocks, 2,588 blocks)
    "ttft_s_mean": (-20.7, 0.6), "tpot_s_mean": (12.9, 0.2), "e2e_s_mean": (-12.5, 0.5),
}  # fmt: skip
RUN = RunRecord(
    run_id="sharegpt-300", source="made-up", gpu="rtx-4090", n_gpus=1, tp=1, pp=1, ep=1, dp=1,
    model="meta-llama/Llama-3.1-8B-Instruct", weight_dtype="bf16", activation_dtype="bf16", kv_dtype="bf16",
    engine="vllm", engine_version="0.19.0", max_num_seqs=256, max_num_batched_tokens=2048, max_model_len=32768,
    gpu_memory_utilization=0.9, prefix_caching=True, chunked_prefill=True, cuda_graphs=True, load="open_loop",
    request_rate_rps=10.0, num_requests=300, input_tok=857.0, output_tok=653.0, length_spread="dataset:sharegpt",
)  # fmt: skip
COLUMNS = tuple(name for name in METRICS if name.startswith(("ttft", "tpot", "e2e", "output")))


def served(blocks: int) -> RunRecord:
    """The run as our engine serves it with so many KV blocks, as a record."""
    asked = msgspec.structs.replace(RUN, kv_capacity_tok=float(blocks * BLOCK_TOK))
    values = Predictor().predict(asked).outcome.values
    return msgspec.structs.replace(asked, **{name: values[name] for name in COLUMNS})


def noisy(record: RunRecord, rng: np.random.Generator) -> RunRecord:
    """The same run once more, every figure off by some thousandths."""
    figures = {name: getattr(record, name) * float(np.exp(rng.normal(0.0, NOISE))) for name in COLUMNS}
    return msgspec.structs.replace(record, **figures)


def study() -> Story:
    """Both numbers of blocks against the resolved one: errors as a table would have them, then the verdict."""
    story = Story(__doc__)
    matched, other = served(RESOLVED), served(TAKEN)
    measured = noisy(matched, np.random.default_rng(0))
    story.say("simulated / 'measured' - 1       3,400 blocks (published)     2,588 blocks (published)")
    for name, published in PUBLISHED.items():
        errors = [100.0 * (getattr(theirs, name) / getattr(measured, name) - 1.0) for theirs in (other, matched)]
        cells = (f"{round(error, 1) + 0.0:+15.1f} % ({p:+5.1f} %)" for error, p in zip(errors, published))
        story.say(f"{name:27}" + "   ".join(cells))
        story.figures[name], story.figures[f"{name}_matched"] = errors
    for blocks, theirs in ((TAKEN, other), (RESOLVED, matched)):
        verdict = judge([measured], "rtx-4090.csv", [theirs])
        story.verdict(f"{blocks:,} blocks simulated, {RESOLVED:,} measured", verdict)
        judged = [name for name in PUBLISHED if verdict.refused(measured.run_id, name) is None]
        story.figures[f"judged_{blocks}"] = judged
        story.say(f"  errors that may be stated: {', '.join(judged) or 'none'}")
    return story


if __name__ == "__main__":
    study().tell()
