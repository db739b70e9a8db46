"""F3: what no board of that name can do, measured or simulated."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from suite_cases import by_hand, case, found, predicted, run, whats

from calibration.setup import resolve
from validate.checks.bounds import MARGIN, Hit, explanations, floor_of
from validate.physical_floor import certain_floor, decode_step, prefill_step
from validate.suite import with_cases

# One sequence of Qwen3-8B in bf16 on an H100: 16.4 GB less the embedding table of 1.2 GB, at 3.35 TB/s: about 4.5 ms.
ALONE = run(load="static_batch", concurrency=1, num_requests=1, batch_mean=None)


def only(record, **metrics):
    """The record with these measured figures and no others."""
    empty = dict.fromkeys(record.measured())
    return msgspec.structs.replace(record, **(empty | metrics))


@pytest.fixture(scope="module")
def plain():
    """The clean run with the floor of its own schedule."""
    return predicted([run()]).cases[0]


def measured(plain, **metrics):
    """Evidence with one case whose measured side holds these figures."""
    return by_hand([replace(plain, record=only(plain.record, **metrics), simulated=None)])


def test_a_clean_run_is_silent(plain):
    assert found("bounds", by_hand([plain])) == []


def test_the_certain_floor_is_the_weights_over_the_bandwidth():
    setup = resolve(ALONE)
    read = setup.model.parameters() - setup.model.embedding_parameters()  # of embeddings only a row is looked up
    need = decode_step(setup, 1, 512)
    assert need.byte == pytest.approx(2.0 * read, rel=0.03)
    assert need.memory_s == pytest.approx(need.byte / 3.35e12)
    assert certain_floor(setup)["token"] == need.seconds == need.memory_s


def test_prefill_is_bound_by_arithmetic():
    setup = resolve(msgspec.structs.replace(ALONE, input_tok=2048))
    need = prefill_step(setup)
    linear = 2.0 * 2048 * 6.95e9  # FLOPs of Qwen3-8B's layers; attention comes on top
    assert need.seconds == need.compute_s
    assert linear / 9.9e14 <= need.compute_s <= 1.15 * linear / 9.89e14


@pytest.mark.parametrize("metric", ["tpot_s_mean", "itl_s_median", "e2e_s_mean", "duration_s"])
def test_a_time_is_refused_just_below_its_floor_and_labelled_at_it(plain, metric):
    floor = floor_of(plain, metric)
    [below] = found("bounds", measured(plain, **{metric: floor * (1.0 - MARGIN - 0.005)}))
    assert (below.severity, below.fault, below.metrics) == ("fail", "F3", (metric,))
    assert below.evidence["schedule_floor"] == pytest.approx(floor)
    [margin] = found("bounds", measured(plain, **{metric: floor * (1.0 - MARGIN + 0.005)}))
    assert (margin.severity, margin.confidence) == ("warn", "possible")
    assert not any(f.alarm for f in found("bounds", measured(plain, **{metric: floor * 1.001})))


@pytest.mark.parametrize("metric", ["output_tok_per_s", "total_tok_per_s"])
def test_a_rate_is_refused_just_above_its_bound(plain, metric):
    bound = floor_of(plain, metric)
    [above] = found("bounds", measured(plain, **{metric: bound / (1.0 - MARGIN - 0.005)}))
    assert above.severity == "fail" and metric in above.says
    assert not any(f.alarm for f in found("bounds", measured(plain, **{metric: bound * 0.999})))


def test_below_the_weights_is_certain_above_them_likely(plain):
    token = certain_floor(plain.setup)["token"]
    schedule = floor_of(plain, "tpot_s_mean")
    assert token < schedule
    [certain] = found("bounds", measured(plain, tpot_s_mean=0.9 * token))
    [likely] = found("bounds", measured(plain, tpot_s_mean=(1.0 - MARGIN) * schedule * 0.99))
    assert (certain.confidence, likely.confidence) == ("certain", "likely")


def test_high_utilisation_is_a_note_only(plain):
    [note] = found("bounds", measured(plain, tpot_s_mean=floor_of(plain, "tpot_s_mean") / 0.95))
    assert (note.check, note.severity) == ("bounds.utilisation", "note")


def test_a_tail_is_held_against_the_median(plain):
    assert floor_of(plain, "itl_s_p99") == min(plain.floor["itl_s_p99"], plain.floor["itl_s_median"])


def test_an_engine_may_take_prompts_and_decode_steps_in_another_order(plain):
    """The queue of the simulated schedule is no bound of the first token, its prompt alone is."""
    schedule, alone = floor_of(plain, "ttft_s_mean"), prefill_step(plain.setup).seconds
    assert alone < 0.2 * schedule
    [queue] = found("bounds", measured(plain, ttft_s_mean=0.5 * schedule))
    assert (queue.severity, queue.confidence) == ("warn", "possible") and "order of steps" in queue.says
    assert not any(f.alarm for f in found("bounds", measured(plain, ttft_s_mean=(1.0 - MARGIN + 0.005) * schedule)))
    [beyond] = found("bounds", measured(plain, ttft_s_mean=0.9 * alone))
    assert beyond.severity == "fail"


def test_prompts_that_start_together_wait_for_each_other_in_any_order():
    """Of 64 at once the mean first token is no earlier than after 32 of them; the schedule says a little more."""
    [burst] = predicted([run(load="burst", concurrency=None, num_requests=64, ttft_s_median=None)]).cases
    together = 32.0 * prefill_step(burst.setup).compute_s
    assert prefill_step(burst.setup).seconds < together < floor_of(burst, "ttft_s_mean")
    [refused] = found("bounds", measured(burst, ttft_s_mean=0.9 * together))
    assert (refused.severity, refused.confidence) == ("fail", "likely")


def test_weights_that_do_not_fit_are_no_matter_of_the_cache():
    evidence = predicted([run(model="meta-llama/Llama-3.1-70B-Instruct")])
    assert not [f for f in found("bounds", evidence) if f.check.startswith("bounds.kv")]
    assert any(f.check == "configuration.weights_fit" for f in found("configuration", evidence))


def test_sentences_name_bytes_bandwidth_and_what_would_explain_it(plain):
    [finding] = found("bounds", measured(plain, tpot_s_mean=0.6 * floor_of(plain, "tpot_s_mean")))
    assert "GB per device" in finding.says and "3350 GB/s" in finding.says
    assert "8-bit weights" in finding.says and "2 times the devices" in finding.says
    assert "tokens per step" in finding.evidence["explained_by"]
    [deeper] = found("bounds", measured(plain, tpot_s_mean=0.4 * floor_of(plain, "tpot_s_mean")))
    assert "8-bit weights" not in deeper.says and "4-bit weights" in deeper.says


def test_a_prefix_cache_is_offered_for_early_first_tokens(plain):
    [finding] = found("bounds", measured(plain, ttft_s_mean=0.5 * floor_of(plain, "ttft_s_mean")))
    assert "prefix cache" in finding.says and "prefix cache" in finding.advice


def test_the_simulated_side_is_held_to_the_same_bounds(plain):
    fast = msgspec.structs.replace(plain.simulated, tpot_s_mean=1e-4)
    own = by_hand([replace(plain, simulated=fast)])
    [finding] = found("bounds", own)
    assert "this simulator's own" in finding.says and "internal error" in finding.advice
    [finding] = found("bounds", replace(own, own=False))
    assert finding.says.startswith("simulated tpot_s_mean") and finding.evidence["side"] == "simulated"


def test_an_open_loop_is_not_judged_by_its_arrivals(plain):
    opened = msgspec.structs.replace(plain.record, load="open_loop")
    changed = replace(plain, record=opened)
    assert floor_of(changed, "output_tok_per_s") is None and floor_of(changed, "duration_s") is None
    assert floor_of(changed, "tpot_s_mean") == plain.floor["tpot_s_mean"]


def test_a_duration_without_a_number_of_requests_is_not_judged(plain):
    changed = replace(plain, record=msgspec.structs.replace(plain.record, num_requests=None))
    assert floor_of(changed, "duration_s") is None


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0])
def test_odd_figures_never_raise(plain, value):
    broken = {"tpot_s_mean": value, "output_tok_per_s": value, "batch_mean": value, "kv_capacity_tok": value}
    findings = found("bounds", measured(plain, **broken))
    assert {f.metrics for f in findings} <= {("tpot_s_mean",)}


def test_unsupported_runs_are_passed_over():
    evidence = by_hand([case(run(input_tok=None))])
    assert evidence.cases[0].setup is None and found("bounds", evidence) == []


@settings(max_examples=25, deadline=None)
@given(st.floats(1.0, 8.0), st.integers(1, 4096))
def test_the_floor_grows_with_sequences_and_context(sequences, context):
    setup = resolve(ALONE)
    one, more = decode_step(setup, 1, context), decode_step(setup, sequences + 1.0, context)
    longer = decode_step(setup, 1, context + 64)
    assert one.seconds < more.seconds and one.seconds < longer.seconds


# -- labelled cases of the taxonomy, restated ----------------------------------------------------------------------


def test_gaps_of_chunks_are_below_the_floor(plain):
    """ITL-CHUNK: a median gap of 0.07 ms where a step of the model needs milliseconds."""
    [finding] = found("bounds", measured(plain, itl_s_median=7e-5))
    assert (finding.confidence, finding.fault) == ("certain", "F3") and "F5" in finding.also


def test_faster_than_the_weights_can_be_read():
    """ARG-FAST: Qwen2-7B, 15.2 GB in bf16, 2,048 tokens in 5 s on one H100: 2.4 ms per token against 4.2 ms."""
    record = run(
        model="Qwen/Qwen2-7B", load="static_batch", concurrency=1, num_requests=1, input_tok=2048, output_tok=2048,
        batch_mean=None,
    )  # fmt: skip
    evidence = predicted([only(record, e2e_s_mean=5.0)])
    [finding] = [f for f in found("bounds", evidence) if f.alarm]
    assert (finding.check, finding.confidence) == ("bounds.time_floor", "certain")
    assert finding.evidence["certain_floor"] > 8.0


def test_shared_prompts_excuse_contexts_beyond_memory_and_long_outputs_do_not():
    """MLE-PREFIX: 600 sequences of 1,400 tokens, 144 kB each, beside 16 GB of weights: 137 GB on an 80 GB card."""
    crowd = run(
        concurrency=600, num_requests=6000, max_num_seqs=600, batch_mean=600.0, input_tok=1300, output_tok=200,
        prefix_caching=True, max_model_len=4096,
    )  # fmt: skip
    [note] = found("bounds", by_hand([case(crowd)]))
    assert (note.check, note.severity, note.fault) == ("bounds.kv_contexts", "note", "F1")
    [refused] = found("bounds", by_hand([case(msgspec.structs.replace(crowd, prefix_caching=False))]))
    assert (refused.severity, refused.fault) == ("fail", "F3") and "137 GB" not in refused.says
    writers = msgspec.structs.replace(crowd, input_tok=200, output_tok=2400)
    [written] = found("bounds", by_hand([case(writers)]))
    assert written.severity == "fail" and "no shared prompt explains" in written.says


def test_a_budget_of_all_the_memory_is_labelled():
    """AIC-KIMI: a cache that takes what gpu_memory_utilization withholds; another that takes more than there is."""
    setup = resolve(run())
    kv_byte, weights = 147_456.0, 16.4e9
    memory = float(setup.device.memory.capacity_byte)
    theirs = {"kv_capacity_tok": (memory - weights) / kv_byte}
    evidence = replace(by_hand([case(run(), simulated=theirs)]), own=False)
    [finding] = found("bounds", evidence)
    assert (finding.check, finding.severity, finding.fault) == ("bounds.kv_capacity", "warn", "F1")
    more = replace(by_hand([case(run(), simulated={"kv_capacity_tok": 1.1 * memory / kv_byte})]), own=False)
    [finding] = found("bounds", more)
    assert (finding.severity, finding.fault) == ("fail", "F3")
    fits = {"kv_capacity_tok": 0.85 * (memory - weights) / kv_byte}
    assert found("bounds", replace(by_hand([case(run(), simulated=fits)]), own=False)) == []


def test_more_sequences_than_the_engine_may_run():
    [finding] = found("bounds", by_hand([case(run(batch_mean=64 * 1.03))]))
    assert (finding.check, finding.confidence) == ("bounds.running", "certain")
    assert found("bounds", by_hand([case(run(batch_mean=64 * 1.01))])) == []
    assert found("bounds", by_hand([case(run(batch_mean=100.0, dp=2, n_gpus=2, concurrency=128))])) == []


def test_runs_of_one_kind_share_a_finding(plain):
    floor = floor_of(plain, "tpot_s_mean")
    several = [
        replace(plain, record=only(msgspec.structs.replace(plain.record, run_id=f"r{i}"), tpot_s_mean=floor * share))
        for i, share in enumerate((0.95, 0.90, 0.92))
    ]
    [finding] = found("bounds", with_cases(by_hand([plain]), [replace(c, simulated=None) for c in several]))
    assert finding.runs == ("r1", "r2", "r0") and finding.evidence["worst_run"] == "r1"
    assert whats([finding]) == {"bounds.time_floor"} and "0.90 to 0.95" in finding.says


def test_explanations_are_only_those_that_suffice(plain):
    floor = floor_of(plain, "tpot_s_mean")
    hit = Hit(plain, "tpot_s_mean", 0.01 * floor, floor, "measured")
    assert explanations(hit) == ()
