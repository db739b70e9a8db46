"""The back-end "transformers": plain PyTorch in this process, on a GPU or a processor, no server and no weights needed.

Hugging Face's model class of a config.json with random weights, in evaluation mode, driven by a loop of its own: exact
static batches, the prompts in one step, then one token of every sequence per step, greedily. A token has arrived when
its step has ended, after the device was waited for. Weights are random: times do not depend on them (experts of random
routers are chosen almost evenly), power does a little.
"""

from __future__ import annotations

import gc
import time
from itertools import pairwise
from typing import Any

from calibration.collect import provenance
from calibration.collect.backends import BackendOptions
from calibration.collect.backends.torch_build import build_model, check_memory, read_config
from calibration.collect.backends.torch_decode import Batch, Clock, Stepper
from calibration.collect.backends.torch_options import TorchSettings, check, dtype_of, read_settings, where
from calibration.collect.backends.torch_quiet import QUIET, quietest
from calibration.collect.point import DISTURBED, BackendError, EngineFacts, Observation, Point, RequestTimes
from simulator.model import load_model

WARM_UP_TOK = 3  # output tokens of a warm-up: kernels are chosen and memory is taken at the first calls
NOTES = {
    "by concatenation": "the cache of this model is copied at every step, as transformers does by default",
    "all logits": "this model's class computes logits of every prompt token",
}


def open_backend(options: BackendOptions) -> TorchBackend:
    """The back-end, with the model in memory. BackendError when it cannot be built or does not fit."""
    check(options)
    settings = read_settings(options.settings)
    config = read_config(options.model)
    import torch  # before transformers, whose error without it would hide which of the two is missing
    import transformers  # noqa: F401

    device = where(options, torch.cuda.is_available())
    dtype = dtype_of(options, config, device)
    check_memory(options.model, dtype, device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    model = build_model(config, dtype, device, settings.attention, options.seed)
    return TorchBackend(options.model, config, model, device, dtype, settings)


class TorchBackend:
    """Static batches through one model. `clock` and the model can be others in tests."""

    def __init__(
        self, name: str, config: dict[str, Any], model: Any, device: str, dtype: str, settings: TorchSettings,
        clock: Clock = time.perf_counter,
    ) -> None:  # fmt: skip
        self._name, self._config, self._device, self._dtype, self._settings = name, config, device, dtype, settings
        known = load_model(name)
        self._vocab_size = known.vocab_size
        longest = known.max_position_embeddings
        self._max_model_len = min(settings.max_model_len or longest, longest)
        self._stepper: Stepper | None = Stepper(model, _synchronizer(device), clock)

    def facts(self) -> EngineFacts:
        """What runs, as far as it decides how fast."""
        import torch

        settings: dict[str, Any] = {
            "max_num_seqs": self._settings.max_num_seqs,
            "max_num_batched_tokens": self._settings.max_num_batched_tokens,
            "max_model_len": self._max_model_len,
            "prefix_caching": False,
            "chunked_prefill": False,
            "cuda_graphs": False,
            "sampling": "greedy",
            "attention_backend": self._settings.attention,
            "device": self._device,
            "dummy_weights": True,
        }
        versions = {name: provenance.software()[name] for name in ("torch", "transformers")}
        if self._device == "cpu":
            settings |= {"threads": torch.get_num_threads(), "processor": provenance.host().get("cpu")}
        else:
            settings["gpu_name"] = torch.cuda.get_device_name()
            versions["cuda"] = str(torch.version.cuda)
            if driver := provenance.gpu_and_driver()[1]:
                versions["driver"] = driver
        return EngineFacts(
            engine="transformers", engine_version=versions["transformers"], model=self._name,
            model_config=self._config, weight_dtype=self._dtype, activation_dtype=self._dtype, kv_dtype=self._dtype,
            settings=settings, versions=versions,
        )  # fmt: skip

    def warm_up(self, point: Point) -> None:
        """The point's prompts and a few tokens, unmeasured."""
        self._check(point)
        self._batch(point, 0, min(point.output_tok, WARM_UP_TOK))

    def run(self, point: Point, seed: int) -> Observation:
        """One static batch of random prompts, once more where other work held it up; a note says if it always did.

        BackendError for a load or sizes that it cannot run.
        """
        self._check(point)
        found, waited = quietest(lambda: self._batch(point, seed, point.output_tok), self._settings.tries)
        times = RequestTimes(found.start_s, found.ends_s, point.input_tok, point.output_tok, cached_tok=0)
        edges = (found.start_s, *found.ends_s)
        notes = [NOTES[found.cache]] if found.cache in NOTES else []
        if not self._stepper.last_logits_only:
            notes.append(NOTES["all logits"])
        if waited is not None and waited > QUIET:
            notes.append(f"{DISTURBED}other work held up a thread for {waited:.0%} of the time")
        return Observation(
            requests=(times,) * point.concurrency, start_s=found.start_s, end_s=found.ends_s[-1],
            steps_s=tuple(b - a for a, b in pairwise(edges)), notes=tuple(notes),
        )  # fmt: skip

    def close(self) -> None:
        """Forget the model and give its memory back."""
        import torch

        self._stepper = None
        gc.collect()  # modules refer to each other in circles
        if self._device == "cuda":
            torch.cuda.empty_cache()

    def _check(self, point: Point) -> None:
        settings, length = self._settings, point.input_tok + point.output_tok
        if self._stepper is None:
            raise BackendError("the transformers back-end is closed")
        if point.load != "static_batch" or point.num_requests != point.concurrency:
            raise BackendError(
                f"the transformers back-end runs static batches, all requests at once; found load '{point.load}' with "
                f"{point.num_requests} requests, {point.concurrency} at a time"
            )
        if point.cuda_graphs:
            raise BackendError("the transformers back-end has no CUDA graphs, expected cuda_graphs off")
        if length > self._max_model_len:
            raise BackendError(f"{length} tokens per sequence, expected at most max_model_len = {self._max_model_len}")
        if point.concurrency > settings.max_num_seqs:
            raise BackendError(
                f"{point.concurrency} sequences, expected at most max_num_seqs = {settings.max_num_seqs}"
            )
        if point.concurrency * point.input_tok > settings.max_num_batched_tokens:
            raise BackendError(
                f"{point.concurrency * point.input_tok} prompt tokens in one step, expected at most "
                f"max_num_batched_tokens = {settings.max_num_batched_tokens}"
            )

    def _batch(self, point: Point, seed: int, output_tok: int) -> Batch:
        import torch

        generator = torch.Generator().manual_seed(seed)
        shape = (point.concurrency, point.input_tok)
        prompts = torch.randint(0, self._vocab_size, shape, generator=generator).to(self._device)
        return self._stepper.run(prompts, output_tok)


def _synchronizer(device: str) -> Any:
    """What waits for the device; a processor has done its work when a call returns."""
    if device == "cpu":
        return lambda: None
    import torch

    return torch.cuda.synchronize
