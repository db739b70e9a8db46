"""One static batch through a model: all prompts in one step, then a token of every sequence per step, greedily."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from calibration.collect.backends.torch_cache import new_cache
from calibration.collect.point import BackendError

Clock = Callable[[], float]


@dataclass(frozen=True)
class Batch:
    """What one run gave: the start, the end of every step (one per output token), the tokens, the kind of cache."""

    start_s: float
    ends_s: tuple[float, ...]
    tokens: Any  # (batch, output_tok)
    cache: str


class Stepper:
    """Runs batches through one model. `synchronize` waits until the device has done all that it was given."""

    def __init__(self, model: Any, synchronize: Callable[[], None], clock: Clock) -> None:
        self.model, self._synchronize, self._clock = model, synchronize, clock
        known = inspect.signature(model.forward).parameters
        self._cache_name = "cache" if "cache" in known else "past_key_values"  # renamed in transformers 5
        # Without it the model would compute logits of every prompt token, which no engine does.
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in known else {}

    @property
    def last_logits_only(self) -> bool:
        """Whether a prompt gets logits of its last token only."""
        return bool(self._last_only)

    def run(self, prompts: Any, output_tok: int) -> Batch:
        """Read `prompts` (batch, input_tok) and write `output_tok` tokens each. BackendError when that fails."""
        import torch

        batch, length = prompts.shape
        try:
            with torch.inference_mode(), no_garbage():
                cache, kind = new_cache(self.model, batch, length + output_tok)
                return self._steps(prompts, output_tok, cache, kind)
        except torch.cuda.OutOfMemoryError:
            raise BackendError(f"out of memory with a batch of {batch} x {length + output_tok} tokens") from None
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise BackendError(f"a step of the model failed: {reason}") from error

    def _steps(self, prompts: Any, output_tok: int, cache: Any, kind: str) -> Batch:
        import torch

        new, written, ends = prompts, [], []
        self._synchronize()
        start_s = self._clock()
        for _ in range(output_tok):
            options = {self._cache_name: cache, "use_cache": True, **self._last_only}
            logits = self.model(input_ids=new, **options).logits
            new = logits[:, -1:].argmax(dim=-1)
            written.append(new)
            # As generate() does, which looks after each token whether a sequence has ended.
            self._synchronize()
            ends.append(self._clock())
        return Batch(start_s, tuple(ends), torch.cat(written, dim=1), kind)


@contextmanager
def no_garbage() -> Iterator[None]:
    """No garbage collection inside: it would stop single steps for milliseconds."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
