"""Two tools, one word: time per output token with the first token and without.

vLLM's benchmark reports as TPOT (last token - first token) / (n - 1); GuideLLM's time_per_output_token is
(last token - start) / n and holds the first token, its inter_token_latency is the former (vLLM 0.33.0; GuideLLM at
ee7a774). A request whose first token takes 1 s and whose other 99 come 20 ms apart has a TPOT of 20 ms in one and of
29.8 ms in the other. Put the second beside a simulator of the first and it is "33 % too fast", the more the longer the
prompts and the shorter the answers; a constant factor it is not.

`calibrate import` knows whose figure is whose. A table put together by hand does not, but the figures of a row still
have to fit each other: end-to-end time is first token + (n - 1) x TPOT.

Both files (examples/data/two_tpots.*.json) are made up, in the tools' formats: 20 requests of one client to
Qwen3-32B on an H200.
"""

import json

import msgspec
from case_studies import DATA, Story, judge

from calibration.importers.fields import SourceFile, read_source
from calibration.importers.table import record_of
from calibration.importers.tools import import_source
from calibration.records import RunRecord

GIVEN = {
    "gpu": "h200-sxm", "n_gpus": 1, "tp": 1, "engine": "vllm", "engine_version": "0.11.0", "weight_dtype": "bf16",
    "length_spread": "fixed",
}  # fmt: skip
VLLM, GUIDELLM = "two_tpots.vllm.json", "two_tpots.guidellm.json"
MS = 1e-3


def imported(source: SourceFile, run_id: str) -> RunRecord:
    """What `calibrate import` makes of a file with one run."""
    [(_, row)] = import_source(source, "auto", GIVEN).rows
    return msgspec.convert(record_of(run_id, row), RunRecord)


def study() -> Story:
    """What the files say, what becomes of it, and what the suite says of a table that mixes them."""
    story = Story(__doc__)
    vllm, guidellm = (json.loads((DATA / name).read_text(encoding="utf-8")) for name in (VLLM, GUIDELLM))
    metrics = guidellm["benchmarks"][0]["metrics"]
    raw_ms = metrics["time_per_output_token_ms"]["successful"]["mean"]
    story.say(f"in the files       TPOT of vLLM {vllm['mean_tpot_ms']:.1f} ms, time_per_output_token of GuideLLM "
              f"{raw_ms:.1f} ms")  # fmt: skip

    records = [imported(read_source(DATA / VLLM), "vllm"), imported(read_source(DATA / GUIDELLM), "guidellm")]
    del metrics["inter_token_latency_ms"]  # a report that was trimmed to the other figure is converted with TTFT
    records.append(imported(SourceFile("trimmed", (guidellm,)), "guidellm-trimmed"))
    told = ", ".join(f"{record.run_id} {record.tpot_s_mean / MS:.1f} ms" for record in records)
    story.say(f"as imported        tpot_s_mean {told}")
    story.figures = {"raw_s": raw_ms * MS, "imported_s": [record.tpot_s_mean for record in records]}
    story.verdict("three imported runs", judge(records, "imported.csv"))

    by_hand = dict.fromkeys(("tpot_s_mean", "tpot_s_median", "tpot_s_p99"), raw_ms * MS)
    mixed = [records[0], msgspec.structs.replace(records[1], **by_hand)]
    verdict = judge(mixed, "by_hand.csv")
    story.verdict("the same two, GuideLLM's column copied by hand", verdict)
    story.say(*(f"  {r.run_id}: TPOT {'may not' if verdict.refused(r.run_id, 'tpot_s_mean') else 'may'} be compared"
                for r in mixed))  # fmt: skip
    return story


if __name__ == "__main__":
    study().tell()
