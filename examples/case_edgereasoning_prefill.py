"""A fit used beyond its range, and a power that was read between the samples.

EdgeReasoning (arXiv:2511.01866) gives the time of a prefill on a Jetson AGX Orin as a quadratic in the prompt's tokens,
with three coefficients per model (github.com/edge-inference/edgereasoning, commit e74ca1e, latency_model.py). They were
fitted on prompts of up to about 1,100 tokens. At 4,096 tokens the one of R1-Distill-Llama-8B says 12.4 s, where the
same authors measured 3.5 s. Nothing in a formula says where it ends, so an error taken over all lengths accuses the
method, not its range: the same quadratic fitted on all lengths is within some per cent. (The authors' script rounds
prompts up to 128 tokens first, which makes it 13.2 s.)

The power of the same prefills was sampled once a second (commit 7f58851 of token2metrics). A prefill of 0.2 s falls
between two samples, so that the published power of short prompts, 5.5 to 5.7 W, is that of an idle board.

Measured rows: calibration/data/runs/edgereasoning.csv, flags that doubt them taken out.
"""

import msgspec
import numpy as np
from case_studies import RUNS, Story, judge, unmarked

from calibration.records import METRICS, RunRecord, read_records
from validate.checks.extrapolation import beyond_range

# Published coefficients of DSR1-Llama-8B: seconds per token squared, per token, and seconds.
PUBLISHED = (6.645207285297158e-07, 0.0002903545130874798, 0.10380849913420899)
FITTED_TOK = (1, 1152)  # the upper end of the input_tokens in config/analytic.yaml; the lower one is not told
SHOWN_TOK = (513, 1027, 2049, 3073, 4097)  # prompts of 128 k tokens and the one that starts them


def mean_error(coefficients: np.ndarray, tok: np.ndarray, seconds: np.ndarray) -> float:
    """Mean size of predicted / measured - 1."""
    return float(np.mean(np.abs(np.polyval(coefficients, tok) / seconds - 1.0)))


def study() -> Story:
    """The fit, then the power."""
    story = Story(__doc__)
    rows = [r for r in read_records(RUNS / "edgereasoning.csv") if "llama-8b-prefill" in r.run_id]
    runs = [r for r in rows if r.power_w is None and not r.flagged("suspect:")]
    _fit(story, runs)
    _power(story, [msgspec.structs.replace(r, **unmarked(r)) for r in rows if r.power_w is not None])
    return story


def _fit(story: Story, runs: list[RunRecord]) -> None:
    seconds = {r.run_id: float(np.polyval(PUBLISHED, r.input_tok)) for r in runs}
    nothing = dict.fromkeys(METRICS)
    theirs = [msgspec.structs.replace(r, **{**nothing, "ttft_s_mean": seconds[r.run_id]}) for r in runs]

    story.say("prompt       measured   published fit")
    for r in (r for r in runs if r.input_tok in SHOWN_TOK):
        story.say(f"{r.input_tok:5.0f} tok   {r.ttft_s_mean:6.3g} s   {seconds[r.run_id]:6.3g} s")
        story.figures[f"fit_s_{r.input_tok:.0f}"] = seconds[r.run_id]
    tok, measured = (np.array([getattr(r, name) for r in runs[1:]]) for name in ("input_tok", "ttft_s_mean"))
    inside = tok <= FITTED_TOK[1] + 1
    for name, coefficients, which in (
        ("published fit, prompts up to 1,153", PUBLISHED, inside),
        ("published fit, all prompts", PUBLISHED, inside | True),
        ("the same formula fitted on all prompts", np.polyfit(tok, measured, 2), inside | True),
    ):
        story.figures[name] = mean_error(coefficients, tok[which], measured[which])
        story.say(f"mean error of {name:40} {100 * story.figures[name]:6.1f} %")

    beyond = beyond_range(
        {r.run_id: r.input_tok for r in runs}, *FITTED_TOK, name="input_tok", unit="tokens", claimed=True,
        metrics=("ttft_s_mean",), predicted=seconds, measured={r.run_id: r.ttft_s_mean for r in runs}, figure_unit="s",
    )  # fmt: skip
    story.verdict("the fit as a simulator", judge(runs, "prefill.csv", theirs), more=[beyond])


def _power(story: Story, runs: list[RunRecord]) -> None:
    short = [r.power_w for r in runs if r.ttft_s_mean < 1.0 and r.input_tok < 1000]
    story.say("", f"power while prompts of up to 897 tokens are computed: {min(short):.1f} to {max(short):.1f} W")
    story.figures["power_w_short"] = max(short)
    story.verdict("the power of the prefills", judge(runs, "power.csv"))


if __name__ == "__main__":
    study().tell()
