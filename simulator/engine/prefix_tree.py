"""Prefix cache: a tree of cached KV blocks, and which of them go first when room is needed.

Blocks are counted, not numbered. A node is a run of blocks with the same history; a path from the root spells the
tokens of a prefix. Only whole blocks are cached. Blocks that nobody holds stay until they are evicted, least recently
used and deepest first, as in vLLM V1.
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
    """Blocks start..end of a cached prefix (block numbers from the root). `refs` counts holdings on or below it.

    A leaf without key is in nobody's path: blocks that only the sequence that wrote them could hit again.
    """

    __slots__ = ("children", "end", "key", "parent", "parts", "refs", "start")

    def __init__(self, parent: Node | None, key: Hashable, parts: Parts, start: int, end: int, refs: int) -> None:
        self.parent, self.key, self.parts = parent, key, parts
        self.start, self.end, self.refs = start, end, refs
        self.children: dict[Hashable, Node] = {}

    @property
    def blocks(self) -> int:
        return self.end - self.start


class PrefixTree:
    """Cached blocks: those that some sequence holds, and idle ones that only wait for a hit or their eviction."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.idle_blocks = 0
        self.held_blocks = 0  # distinct; a block in several paths counts once
        self.root = Node(None, None, (), 0, 0, refs=1)
        # Unheld nodes by time of release, deepest first. A child is released no later than its parent, so the
        # first node never has children and can always be evicted.
        self._idle: dict[Node, None] = {}
        self._nobodys: Node | None = None  # the node released last, if it is a leaf that nobody will ask for

    def match(self, parts: Parts, limit_blocks: int) -> tuple[Node, int]:
        """The longest cached prefix of `parts`, at most `limit_blocks`: (deepest node touched, whole blocks)."""
        node = self.root
        while node.end < limit_blocks:
            child = node.children.get(self._key(parts, node.end)) if node.children else None
            if child is None:
                break
            shared = min(common_prefix_tok(parts, child.parts) // self.block_size, child.end, limit_blocks)
            if shared < child.end:
                return child, shared
            node = child
        return node, node.end

    def idle_on_path(self, hit: tuple[Node, int]) -> int:
        """Blocks of a hit (from `match`) that nobody holds yet."""
        node, cached = hit
        idle = 0
        while node is not self.root:
            if node.refs == 0:
                idle += min(node.end, cached) - node.start
            node = node.parent
        return idle

    def hold(self, hit: tuple[Node, int]) -> Node:
        """One more sequence holds the blocks of a hit; returns the node that ends there."""
        node, cached = hit
        if cached < node.end:
            node = self._split(node, cached)
        found = node
        while node is not self.root:
            self._hold(node)
            node = node.parent
        return found

    def enter(self, node: Node, parts: Parts, blocks: int, merge: bool) -> tuple[Node, int, int]:
        """Blocks node.end..blocks of a sequence that holds `node` become cached: (its new node, moved, duplicates).

        Content that is cached already ends this where `merge` is false: as in vLLM, a running sequence keeps its own
        copy. With `merge` its copies are `duplicates`, which the caller frees.
        """
        moved = duplicates = 0
        while node.end < blocks:
            key = self._key(parts, node.end)
            child = node.children.get(key)
            if child is None:
                child = node.children[key] = Node(node, key, parts, node.end, blocks, refs=1)
                self.held_blocks += child.blocks
                moved += child.blocks
            elif merge:
                shared = min(common_prefix_tok(parts, child.parts) // self.block_size, child.end, blocks)
                if shared < child.end:
                    child = self._split(child, shared)
                self._hold(child)
                duplicates += child.blocks
            else:
                break
            node = child
        return node, moved, duplicates

    def release(self, node: Node) -> None:
        """A sequence lets go of the path down to `node`."""
        while node is not self.root:
            node.refs -= 1
            if node.refs == 0:
                self._idle[node] = None
                self._nobodys = None
                self.idle_blocks += node.blocks
                self.held_blocks -= node.blocks
            node = node.parent

    def leave(self, node: Node, blocks: int) -> Node:
        """`blocks` blocks below `node` stay behind that only their own sequence could hit; their leaf."""
        leaf = Node(node, None, (), node.end, node.end + blocks, refs=0)
        self._idle[leaf] = None
        self._nobodys = None
        self.idle_blocks += blocks
        return leaf

    def leave_for_nobody(self, blocks: int) -> None:
        """`blocks` blocks stay behind that nobody will ask for. Successive ones are kept as one."""
        if self._nobodys is None:
            self._nobodys = Node(self.root, None, (), 0, 0, refs=0)
            self._idle[self._nobodys] = None
        self._nobodys.end += blocks
        self.idle_blocks += blocks

    def take_back(self, leaf: Node) -> None:
        """The sequence that left `leaf` behind takes what is left of it."""
        if leaf in self._idle:
            del self._idle[leaf]
            self.idle_blocks -= leaf.blocks

    def evict(self, blocks: int) -> None:
        """Forget `blocks` idle blocks, least recently used first, the end of a prefix first."""
        self.idle_blocks -= blocks
        while blocks > 0:
            node = next(iter(self._idle))
            taken = min(blocks, node.end - node.start)
            node.end -= taken
            blocks -= taken
            if node.end == node.start:
                del self._idle[node]
                if node is self._nobodys:
                    self._nobodys = None
                if node.key is not None:
                    del node.parent.children[node.key]

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
            self._nobodys = None
        return upper

    def _hold(self, node: Node) -> None:
        if node.refs == 0:
            del self._idle[node]
            self.idle_blocks -= node.blocks
            self.held_blocks += node.blocks
        node.refs += 1
