"""Runs that waited for the host, taken for runs of a GPU.

The ML.ENERGY leaderboard (github.com/ml-energy/leaderboard, commit 0cd52da) measures models on H100 and on B200. On
B200 17 of 291 points are faster than the next smaller batch by more than 5 %, on H100 none of 274. On B200 one model
takes four times as long for a token of one task as of another, at the same batch and with little more than half the
power: boards that wait draw little. The probable cause is contention for the host's processors; the files do not say.

A simulator that is held against such rows looks far too fast. One that is calibrated on them is worse: it has learnt
the queue of one machine. The suite does not need its own level of time to be right: it compares the runs of a campaign
with each other, time against power, and looks for speed that falls and rises again along a batch.

Rows: calibration/data/runs/mlenergy_suspect.csv, those of B200; the flags that call them host-bound are taken out.
"""

import msgspec
from case_studies import RUNS, Story, judge, unmarked

from calibration.records import read_records

# One model, three batches, two tasks: questions of science, and chat.
SHOWN = "nvidia/NVIDIA-Nemotron-Nano-12B-v2"
BATCHES = (8, 16, 32)
TASKS = {"dataset:gpqa": "science", "dataset:lm-arena-chat": "chat"}
TOLD = ("host_bound.waiting", "host_bound.campaign", "shape.direction")


def study() -> Story:
    """What the rows say of one model, and what the suite says of all of them."""
    story = Story(__doc__)
    rows = [r for r in read_records(RUNS / "mlenergy_suspect.csv") if r.gpu == "b200-sxm"]
    labelled = {r.run_id for r in rows if r.flagged("suspect:host_bound")}
    verdict = judge([msgspec.structs.replace(r, **unmarked(r)) for r in rows], "b200.csv")

    story.say(f"{SHOWN.split('/')[1]} on one B200", "batch  task      measured   data sheet's floor    power")
    for batch in BATCHES:
        for r in rows:
            if r.model == SHOWN and r.concurrency == batch and r.length_spread in TASKS:
                floor_s = verdict.evidence.by_id[r.run_id].floor["itl_s_median"]
                story.say(
                    f"{batch:5}  {TASKS[r.length_spread]:8}  {1e3 * r.itl_s_median:5.1f} ms   "
                    f"{1e3 * floor_s:15.1f} ms   {r.power_w:5.0f} W"
                )
                story.figures[f"itl_s_{TASKS[r.length_spread]}_{batch}"] = r.itl_s_median

    story.verdict("all B200 rows", verdict, only=TOLD)
    named = {f.check: set(f.runs) for f in verdict.findings if f.check in TOLD}
    alone = labelled.intersection(named.get("host_bound.waiting", ()))
    story.figures |= {
        "labelled": len(labelled), "named": len(labelled & set().union(*named.values())),
        "named_one_by_one": len(alone),
    }  # fmt: skip
    story.say(
        "",
        f"of {len(labelled)} rows that the collector labelled host-bound, {story.figures['named']} stand in these "
        f"findings, {len(alone)} of them one by one; the others",
        "are in doubt with their campaign, as nothing in them tells a mildly slowed run from a free one",
    )
    return story


if __name__ == "__main__":
    study().tell()
