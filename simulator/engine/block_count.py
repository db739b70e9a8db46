"""KV blocks of decoding sequences, counted without looking at each of them.

A decoding sequence with c tokens before step s0 holds ceil((c + s - s0 + 1) / size) blocks in step s. So it gains one
block every `size` steps, and all that matters of it is the phase in which it does.
"""

from __future__ import annotations

from typing import Any


class DecodeBlocks:
    """Blocks that decoding sequences hold beside the `hit` shared ones of each."""

    def __init__(self, block_size: int) -> None:
        self._size = block_size
        self._sequences = 0
        self._phases = [0] * block_size  # sequences by the phase in which they need a new block
        self._offset = 0
        # The step asked for last, as whole * size + phase, and how many sequences have a phase below it.
        self._step = self._whole = self._phase = self._below = 0

    def join(self, sequence: Any) -> None:
        """`sequence` decodes from step `sequence.start` on, with `sequence.computed` tokens in the cache before it."""
        quotient, phase = divmod(sequence.start - sequence.computed - 1, self._size)
        self._phases[phase] += 1
        if phase < self._phase:
            self._below += 1
        self._offset += quotient + sequence.hit
        self._sequences += 1

    def leave(self, sequence: Any, step: int) -> int:
        """It does not decode any more; the blocks of its own that it held in `step`."""
        quotient, phase = divmod(sequence.start - sequence.computed - 1, self._size)
        self._phases[phase] -= 1
        if phase < self._phase:
            self._below -= 1
        self._offset -= quotient + sequence.hit
        self._sequences -= 1
        return -(-(step - sequence.start + sequence.computed + 1) // self._size) - sequence.hit

    def at(self, step: int) -> int:
        """Blocks held once step `step` has got its blocks."""
        if step != self._step:
            before, self._step = self._phase, step
            self._whole, phase = divmod(step, self._size)
            if phase >= before:
                self._below += sum(self._phases[before:phase])
            else:
                self._below = sum(self._phases[:phase])
            self._phase = phase
        return self._sequences * self._whole + self._below - self._offset

    def last_within(self, step: int, steps: int, room: int) -> int:
        """How many steps (>= 1, <= steps) from `step` on fit into `room` blocks; the first one does."""
        if self.at(step + steps - 1) <= room:
            return steps
        low, high = 1, steps
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.at(step + middle - 1) <= room else (low, middle)
        return low
