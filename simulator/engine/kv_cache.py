"""Paged KV cache of sequences that are followed one by one: which blocks are free, held, or kept for a later hit."""

from __future__ import annotations

from simulator.engine.prefix_tree import Node, Parts, PrefixTree, common_prefix_tok

__all__ = ["Holding", "KvCache", "Parts", "common_prefix_tok"]


class Holding:
    """The blocks of one running sequence: a path of shared cached blocks down to `node`, then private ones."""

    __slots__ = ("node", "private")

    def __init__(self, node: Node) -> None:
        self.node, self.private = node, 0

    @property
    def blocks(self) -> int:
        return self.node.end + self.private


class KvCache:
    """A pool of `blocks` blocks of `block_size` tokens. At any time free + held + kept (idle) = blocks.

    As in vLLM V1 a block becomes cacheable when it is scheduled.
    """

    def __init__(self, blocks: int, block_size: int, enable_prefix_caching: bool = True) -> None:
        self.blocks, self.block_size, self.caching = blocks, block_size, enable_prefix_caching
        self.free = blocks  # blocks with nothing in them
        self.peak_held = 0
        self.tree = PrefixTree(block_size)

    @property
    def idle_blocks(self) -> int:
        """Cached blocks that nobody holds: they serve hits until they are evicted."""
        return self.tree.idle_blocks

    @property
    def available(self) -> int:
        """Blocks that a sequence could get now."""
        return self.free + self.tree.idle_blocks

    @property
    def held(self) -> int:
        """Distinct blocks that running sequences hold; a shared block counts once."""
        return self.blocks - self.free - self.tree.idle_blocks

    def blocks_for(self, tokens: int) -> int:
        """Whole blocks that `tokens` tokens occupy."""
        return -(-tokens // self.block_size)

    def match(self, parts: Parts, limit_tok: int) -> tuple[Node, int]:
        """The longest cached prefix of `parts` of at most `limit_tok` tokens: (deepest node touched, whole blocks)."""
        return self.tree.match(parts, limit_tok // self.block_size)

    def admit(self, hit: tuple[Node, int], tokens: int) -> Holding | None:
        """A holding of `tokens` tokens that starts with the cached blocks `hit` (from `match`); None if blocks lack."""
        if self.blocks_for(tokens) - hit[1] > self.available - self.tree.idle_on_path(hit):
            return None
        holding = Holding(self.tree.hold(hit))
        self.grow(holding, tokens)
        return holding

    def grow(self, holding: Holding, tokens: int) -> bool:
        """Make room for `tokens` tokens in all. False, and nothing changed, if too few blocks are available."""
        needed = -(-tokens // self.block_size) - holding.node.end - holding.private
        if needed <= 0:
            return True
        if needed > self.available:
            return False
        if needed > self.free:
            missing = needed - self.free
            self.tree.evict(missing)
            self.free += missing
        self.free -= needed
        holding.private += needed
        self.peak_held = max(self.peak_held, self.held)
        return True

    def register(self, holding: Holding, parts: Parts, tokens: int) -> None:
        """Offer the whole blocks of the first `tokens` tokens of `parts` to other sequences.

        Stops at a block whose content is cached already: as in vLLM, its holder keeps its own copy while it runs.
        """
        if self.caching:
            self._enter(holding, parts, tokens // self.block_size, merge=False)

    def release(self, holding: Holding, parts: Parts, tokens: int) -> None:
        """The sequence ends (or is preempted) with `tokens` computed tokens, which begin `parts`."""
        if self.caching:
            self._enter(holding, parts, tokens // self.block_size, merge=True)
        self.free += holding.private
        holding.private = 0
        self.tree.release(holding.node)

    def _enter(self, holding: Holding, parts: Parts, blocks: int, merge: bool) -> None:
        """Move private blocks of `holding` into the tree, up to block number `blocks`; `merge` drops duplicates."""
        holding.node, moved, duplicates = self.tree.enter(holding.node, parts, blocks, merge)
        holding.private -= moved + duplicates
        self.free += duplicates
