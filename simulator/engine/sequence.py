"""One call inside the engine: what it still has to compute, what it holds, and what it attends to."""

from __future__ import annotations

from collections.abc import Sequence as Several
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from simulator.engine.kv_cache import Holding, Parts


class Pass(NamedTuple):
    """`count` forward passes of a diffusion model, each over `new_tok` positions behind `cached_tok` with KV.

    Every position sees all of them. `logits_tok`: positions for which logits are computed (None: all new ones).
    """

    count: int
    new_tok: int
    cached_tok: int = 0
    logits_tok: int | None = None


@dataclass(eq=False)
class Sequence:
    """One call inside the engine. `computed_tok` counts its tokens with KV, `written_tok` those sampled so far."""

    call_id: int
    label: str
    prompt: Parts
    prompt_tok: int
    output_tok: int
    submitted_s: float
    parents: tuple[int, ...]
    done: Any  # SimPy event, succeeds with the CallRecord
    priority: int = 0  # lower is served first, where the policy asks for it
    loaded_tok: int = 0  # tokens of the prompt whose KV comes from another engine
    written_tok: int = 0
    computed_tok: int = 0
    cached_tok: int | None = None  # None until first admitted
    recomputed_tok: int = 0
    preemptions: int = 0
    scheduled_s: float | None = None
    first_token_s: float = 0.0
    holding: Holding | None = field(default=None, repr=False)
    attended: tuple[tuple[Sequence, int], ...] = field(default=(), repr=False)  # whose KV it reads, behind how many
    keep: bool = False  # its KV stays held after its end
    readers: int = 0  # calls that attend to its KV and have not ended
    group: list[Sequence] | None = field(default=None, repr=False)  # who advances in lock-step with it, itself included
    stopped: bool = False  # ended before its time
    record: Any = field(default=None, repr=False)  # the CallRecord, once it has ended
    marks: list[tuple[int, Any]] = field(default_factory=list, repr=False)  # (written tokens, event), least first

    whole = False  # whether a step has to compute all pending tokens or none of them

    @property
    def number(self) -> int:
        """Place in the order of arrival."""
        return self.call_id

    @property
    def parts(self) -> Parts:
        """Prompt and the output so far, as the prefix cache sees them."""
        return (*self.prompt, (("output", self.call_id), self.written_tok)) if self.written_tok else self.prompt

    @property
    def pending_tok(self) -> int:
        """Tokens to compute before the next one can be sampled: 1 while decoding."""
        return self.prompt_tok + self.written_tok - self.computed_tok

    @property
    def decoding(self) -> bool:
        return self.written_tok > 0 and self.pending_tok == 1

    @property
    def ended(self) -> bool:
        return self.stopped or self.written_tok == self.output_tok

    @property
    def held_for_others(self) -> bool:
        """Whether its KV stays held although it has ended."""
        return self.keep or self.readers > 0

    @property
    def prefilled_tok(self) -> int:
        """Prompt tokens that were computed for it, and are not computed again."""
        return 0 if self.cached_tok is None else max(0, min(self.prompt_tok, self.computed_tok) - self.cached_tok)

    @property
    def next_stop_tok(self) -> int:
        """Written tokens at which somebody has to hear of it: the end, or a mark before."""
        return min(self.marks[0][0], self.output_tok) if self.marks else self.output_tok

    def written_after(self, steps: int) -> int:
        """Tokens written once `steps` more of the steps under way have ended."""
        return self.written_tok + steps

    def attended_tok(self) -> int:
        """Tokens with KV that it attends to besides its own; what both prompts begin with counts once."""
        return sum(max(0, other.computed_tok - shared_tok) for other, shared_tok in self.attended)

    def held_tok(self, new_tok: int) -> int:
        """Tokens whose KV it holds once `new_tok` more are computed."""
        return self.computed_tok + new_tok

    def book(self, new_tok: int, steps: int) -> None:
        """`steps` steps of `new_tok` tokens have been computed; more than one step only while decoding."""
        sampled = new_tok == self.pending_tok
        self.computed_tok += new_tok + steps - 1
        self.written_tok += steps if sampled else 0

    def book_admission(self, cached_tok: int) -> None:
        """(Re-)start behind `cached_tok` tokens of the prefix cache; what was computed beyond them is lost."""
        if self.cached_tok is None:
            self.cached_tok = cached_tok
        else:
            self.recomputed_tok += self.computed_tok - cached_tok
            if self.recomputed_tok < 0:  # meanwhile others computed more of this prompt than was lost
                self.cached_tok -= self.recomputed_tok
                self.recomputed_tok = 0
        self.computed_tok = cached_tok


@dataclass(eq=False)
class PassSequence(Sequence):
    """A call that a diffusion model answers in whole passes. It holds KV only where its passes cache some."""

    passes: Several[Pass] = ()
    stage: int = 0  # which of `passes` is next
    passes_done: int = 0  # of this stage
    all_done: int = 0

    whole = True

    @property
    def all_passes(self) -> int:
        return sum(stage.count for stage in self.passes)

    @property
    def prefilled_tok(self) -> int:
        return self.prompt_tok if self.all_done else 0  # every pass sees it whole

    @property
    def now(self) -> Pass:
        """The pass that is next."""
        return self.passes[min(self.stage, len(self.passes) - 1)]

    @property
    def parts(self) -> Parts:
        return ()  # a bidirectional cache is of no use to another text

    @property
    def pending_tok(self) -> int:
        return self.now.new_tok

    @property
    def decoding(self) -> bool:
        return False

    @property
    def ended(self) -> bool:
        return self.stopped or self.stage == len(self.passes)

    @property
    def left(self) -> int:
        """Passes of this stage, which all cost the same, up to its end or the first token."""
        left = self.now.count - self.passes_done
        if self.written_tok == 0 and self.output_tok:
            left = min(left, -(-self.all_passes // self.output_tok) - self.all_done)
        return left

    def written_after(self, steps: int) -> int:
        return self.output_tok * (self.all_done + steps) // self.all_passes

    def held_tok(self, new_tok: int) -> int:
        return max(stage.cached_tok for stage in self.passes)

    def book(self, new_tok: int, steps: int) -> None:
        """`steps` passes of this stage are done; the tokens are unmasked evenly over all passes."""
        self.passes_done += steps
        self.all_done += steps
        if self.passes_done == self.now.count:
            self.stage, self.passes_done = self.stage + 1, 0
        self.computed_tok = 0
        self.written_tok = self.output_tok * self.all_done // self.all_passes

    def book_admission(self, cached_tok: int) -> None:
        """A bidirectional cache cannot be rebuilt behind a prefix; what was unmasked stays."""
        self.cached_tok = 0
