"""Paged KV cache with prefix sharing: which blocks are free, held, or kept for a later hit.

Blocks are counted, not numbered. Cached blocks live in a tree whose nodes are runs of blocks with the same history;
a path from the root spells the tokens of a prefix. As in vLLM V1 only whole blocks are cached, a block becomes
cacheable when it is scheduled, and unreferenced blocks stay until they are evicted, least recently used and
deepest first.
"""

from __future__ import annotations

from collections.abc import Hashable

Parts = tuple[tuple[Hashable, int], ...]  # what a text consists of: (part id, tokens)


def common_prefix_tok(a: Parts, b: Parts) -> int:
    """Tokens of the longest common prefix of two texts. (id, n) is the first n tokens of the stream `id`."""
    total = 0
    for (id_a, tokens_a), (id_b, tokens_b) in zip(a, b):
        if id_a != id_b:
            break
        total += min(tokens_a, tokens_b)
        if tokens_a != tokens_b:
            break
    return total


class Node:
    """Blocks start..end of a cached prefix (block numbers from the root). `refs` counts holdings on or below it."""

    __slots__ = ("children", "end", "key", "parent", "parts", "refs", "start")

    def __init__(self, parent: Node | None, key: Hashable, parts: Parts, start: int, end: int, refs: int) -> None:
        self.parent, self.key, self.parts = parent, key, parts
        self.start, self.end, self.refs = start, end, refs
        self.children: dict[Hashable, Node] = {}

    @property
    def blocks(self) -> int:
        return self.end - self.start


class Holding:
    """The blocks of one running sequence: a path of shared cached blocks down to `node`, then private ones."""

    __slots__ = ("node", "private")

    def __init__(self, node: Node) -> None:
        self.node, self.private = node, 0

    @property
    def blocks(self) -> int:
        return self.node.end + self.private


class KvCache:
    """A pool of `blocks` blocks of `block_size` tokens. At any time free + held + kept (idle) = blocks."""

    def __init__(self, blocks: int, block_size: int, enable_prefix_caching: bool = True) -> None:
        self.blocks, self.block_size, self.caching = blocks, block_size, enable_prefix_caching
        self.free = blocks  # blocks with nothing in them
        self.idle_blocks = 0  # cached blocks that nobody holds: they serve hits until they are evicted
        self.peak_held = 0
        self._root = Node(None, None, (), 0, 0, refs=1)
        # Unheld nodes by time of release, deepest first. A child is released no later than its parent, so the
        # first node never has children and can always be evicted.
        self._idle: dict[Node, None] = {}

    @property
    def available(self) -> int:
        """Blocks that a sequence could get now."""
        return self.free + self.idle_blocks

    @property
    def held(self) -> int:
        """Distinct blocks that running sequences hold; a shared block counts once."""
        return self.blocks - self.free - self.idle_blocks

    def blocks_for(self, tokens: int) -> int:
        """Whole blocks that `tokens` tokens occupy."""
        return -(-tokens // self.block_size)

    # -- sequences come, grow and go -------------------------------------------------------------------------

    def match(self, parts: Parts, limit_tok: int) -> tuple[Node, int]:
        """The longest cached prefix of `parts` of at most `limit_tok` tokens: (deepest node touched, whole blocks)."""
        node, limit = self._root, limit_tok // self.block_size
        while node.end < limit:
            child = node.children.get(self._key(parts, node.end))
            if child is None:
                break
            shared = min(common_prefix_tok(parts, child.parts) // self.block_size, child.end, limit)
            if shared < child.end:
                return child, shared
            node = child
        return node, node.end

    def admit(self, hit: tuple[Node, int], tokens: int) -> Holding | None:
        """A holding of `tokens` tokens that starts with the cached blocks `hit` (from `match`); None if blocks lack."""
        node, cached = hit
        idle, above = 0, node
        while above is not self._root:
            if above.refs == 0:
                idle += min(above.end, cached) - above.start
            above = above.parent
        if self.blocks_for(tokens) - cached > self.available - idle:
            return None
        if cached < node.end:
            node = self._split(node, cached)
        holding = Holding(node)
        while node is not self._root:
            self._hold(node)
            node = node.parent
        self.grow(holding, tokens)
        return holding

    def grow(self, holding: Holding, tokens: int) -> bool:
        """Make room for `tokens` tokens in all. False, and nothing changed, if too few blocks are available."""
        needed = self.blocks_for(tokens) - holding.blocks
        if needed > self.available:
            return False
        if needed > 0:
            if needed > self.free:
                self._evict(needed - self.free)
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
        node = holding.node
        while node is not self._root:
            node.refs -= 1
            if node.refs == 0:
                self._idle[node] = None
                self.idle_blocks += node.blocks
            node = node.parent

    # -- the tree --------------------------------------------------------------------------------------------

    def _enter(self, holding: Holding, parts: Parts, blocks: int, merge: bool) -> None:
        """Move private blocks of `holding` into the tree, up to block number `blocks`; `merge` drops duplicates."""
        while holding.node.end < blocks:
            node = holding.node
            key = self._key(parts, node.end)
            child = node.children.get(key)
            if child is None:
                child = node.children[key] = Node(node, key, parts, node.end, blocks, refs=1)
            elif merge:
                shared = min(common_prefix_tok(parts, child.parts) // self.block_size, child.end, blocks)
                if shared < child.end:
                    child = self._split(child, shared)
                self._hold(child)
                self.free += child.blocks
            else:
                return
            holding.private -= child.blocks
            holding.node = child

    def _key(self, parts: Parts, block: int) -> Hashable:
        """The content of one block: which tokens of which parts."""
        start = block * self.block_size
        stop, offset, found = start + self.block_size, 0, []
        for part_id, tokens in parts:
            low, high = max(start - offset, 0), min(stop - offset, tokens)
            if low < high:
                found.append((part_id, low, high))
            offset += tokens
            if offset >= stop:
                break
        return tuple(found)

    def _split(self, node: Node, at: int) -> Node:
        """Cut `node` in front of block `at`; returns the new upper node. Holdings of `node` now hold both."""
        upper = Node(node.parent, node.key, node.parts, node.start, at, node.refs)
        node.parent.children[node.key] = upper
        node.parent, node.start, node.key = upper, at, self._key(node.parts, at)
        upper.children[node.key] = node
        if upper.refs == 0:
            self._idle[upper] = None
        return upper

    def _hold(self, node: Node) -> None:
        if node.refs == 0:
            del self._idle[node]
            self.idle_blocks -= node.blocks
        node.refs += 1

    def _evict(self, blocks: int) -> None:
        """Forget `blocks` cached blocks that nobody holds, least recently used first, the end of a prefix first."""
        while blocks > 0:
            node = next(iter(self._idle))
            taken = min(blocks, node.blocks)
            node.end -= taken
            blocks -= taken
            self.free += taken
            self.idle_blocks -= taken
            if node.blocks == 0:
                del self._idle[node]
                del node.parent.children[node.key]
