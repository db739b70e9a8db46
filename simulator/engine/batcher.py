"""The scheduler that jumps from event to event: which requests each engine step serves, without looking at each step.

The rules are vLLM V1's, those of `simulator.engine.scheduler`: running sequences first, then a chunk of the prompt
under way, then new prompts, while tokens, seats and KV blocks last; preemption by recompute. That one follows every
sequence step by step. This one uses that a decoding sequence takes part in every step: its state is the step in which
it started, finishes wait in a heap, and attended keys and KV blocks are sums that are affine in the step. The only
unit of time is the step; who drives it says what a step lasts.

    batcher.push(request)
    steps = batcher.plan()     # schedules the next step; how often it can be repeated before the batch must change
    batcher.advance(steps)     # or fewer; batcher.first and batcher.done say whose first or last token that wrote
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence

from simulator.engine.block_count import DecodeBlocks
from simulator.engine.key_sums import AllKeys, key_sum
from simulator.engine.prefix_tree import Node, Parts, PrefixTree
from simulator.engine.queues import POLICIES
from simulator.engine.settings import EngineSettings
from simulator.keys import KeyRule

NOT_DECODING = -1


class Request:
    """One request inside an engine. Steps are those of its engine; `number` is its place in the traffic.

    Attributes of the class are what most requests never change, so that a request costs little to make; those that are
    read often are set on the instance all the same, where they are found sooner.
    """

    priority = 0  # lower is served first, where the policy asks for it
    parts: Parts = ()  # the beginning of the prompt, as far as other prompts may begin alike
    shared = 0  # whole blocks of it that may be those of other prompts
    loaded_tok = 0  # tokens of the prompt whose KV comes from another engine
    written = 0  # tokens sampled, as far as they are booked
    computed = 0  # tokens with KV; while decoding, what that was at `start`
    total = 0  # tokens to compute before the next one can be sampled
    admission = 0  # number of the latest admission
    start = 0  # the first step of decoding
    finish = NOT_DECODING  # the step after its last
    cached_tok = -1  # of the first admission
    recomputed_tok = preemptions = 0
    node: Node  # the end of its path in the prefix tree; set on arrival
    hit = 0  # blocks of that path
    leaf: Node | None = None  # its own blocks that outlived a preemption

    def __init__(self, number: int, prompt_tok: int, output_tok: int) -> None:
        self.number, self.prompt_tok, self.output_tok = number, prompt_tok, output_tok
        self.written = self.shared = self.hit = self.loaded_tok = 0
        self.leaf = None


class Batcher:
    """The scheduler's state between two stretches of steps.

    With `async_scheduling` the next step is planned before the present one has ended, as in vLLM: what a finish frees
    is seen one step later (the driver sees to arrivals). `rules`: whose attended keys to follow, see `keys`.
    `micro_batches`: of max_num_batched_tokens each, that a step sends through as many pipeline stages.
    """

    __slots__ = (  # CPython looks attributes up faster in slots than among more than 30 of an instance
        "_admissions",
        "_async",
        "_bent",
        "_blocks",
        "_booked",
        "_budget",
        "_by_priority",
        "_caching",
        "_chunked",
        "_completing",
        "_finishes",
        "_idle_plans",
        "_keys",
        "_kv_blocks",
        "_limbo",
        "_only",
        "_partial",
        "_planned",
        "_prefill_blocks",
        "_seats",
        "_size",
        "admitted",
        "blocked",
        "chunks",
        "decoding",
        "done",
        "first",
        "joins",
        "planned_blocks",
        "preempted",
        "queue",
        "resumed",
        "running",
        "step",
        "tree",
        "unseen_blocks",
    )

    written_tok: int | None = None  # tokens of the last step, where that is not one for every sequence that samples

    def __init__(
        self,
        settings: EngineSettings,
        kv_blocks: int,
        rules: Sequence[KeyRule] = (),
        async_scheduling: bool = False,
        micro_batches: int = 1,
    ) -> None:
        self._seats, self._budget = settings.max_num_seqs, settings.max_num_batched_tokens * micro_batches
        self._size, self._caching = settings.block_size, settings.enable_prefix_caching
        self._chunked = settings.enable_chunked_prefill
        self._by_priority = settings.scheduling_policy == "priority"
        self._kv_blocks, self._async = kv_blocks, async_scheduling
        self.step = 0  # the next one
        self.queue = POLICIES[settings.scheduling_policy]()
        self.running: dict[Request, None] = {}  # in order of admission
        self.tree = PrefixTree(settings.block_size)
        self._keys = [key_sum(rule) for rule in rules]
        self._only = self._keys[0] if [type(keys) for keys in self._keys] == [AllKeys] else None
        self._bent = [keys for keys in self._keys if not isinstance(keys, AllKeys)]  # whose slope may change by itself
        self._finishes: list[tuple[int, int, Request]] = []  # (step after the last, admission, request)
        self.decoding = 0
        self._partial: Request | None = None  # the prompt of which a chunk is left
        self._completing: list[Request] = []  # those whose prompts the planned step completes
        self._admissions = 0
        self._blocks = DecodeBlocks(self._size)
        self._prefill_blocks = 0  # own blocks of prompts under way and of those that the planned step completes
        self._limbo: deque[tuple[int, int, Request]] = deque()  # finishes not yet seen: (step, own blocks, request)
        self._idle_plans = 0
        # The planned step, beside decoding.
        self.planned_blocks = 0  # distinct KV blocks held
        self.unseen_blocks = 0  # of them, those of finished requests whose finish is not seen yet
        self.chunks: list[tuple[Request, int, int, bool]] = []  # (request, new, cached, completes)
        self.joins: list[int] = []  # tokens in cache of preempted sequences that go on decoding at once
        self.admitted: list[Request] = []
        self.blocked = False  # requests wait because every seat is taken or KV blocks lack
        # What the last stretch did.
        self.first: list[Request] = []  # sampled their first token
        self.done: list[Request] = []  # sampled their last
        self.resumed: list[Request] = []  # sampled their first token since a preemption
        self.preempted: list[Request] = []  # by the last plan
        self._planned = self._booked = False  # whether there is anything in those of the plan, of the stretch

    # -- what a driver sees ----------------------------------------------------------------------------------

    def push(self, request: Request) -> None:
        """A request arrives. It must fit: prompt and output into max_model_len and into the KV cache."""
        request.node = self.tree.root
        self.queue.push(request)

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not (self.running or self.queue)

    @property
    def could_admit(self) -> bool:
        """Whether somebody who came now might join the planned batch before it changes by itself."""
        return (not self.queue or self._by_priority) and len(self.running) < self._seats

    def cached_blocks(self, request: Request, step: int) -> int:
        """Blocks at the beginning of a request's prompt that the prefix cache holds in `step`: of the planned stretch,
        or the last one before the next plan.
        """
        if not request.shared:
            return 0
        self._evict_beside(self._held_in(step))
        return self.tree.match(request.parts, request.shared)[1]

    def keys(self) -> Sequence[int]:
        """Keys of the planned step in one layer, one entry per rule, summed over decoding sequences (without joins)."""
        return self._only.now(self.step) if self._only is not None else [keys.at(self.step) for keys in self._keys]

    def slopes(self) -> Sequence[int]:
        """By how much `keys` grow from one step of the planned stretch to the next."""
        return (self._only.slope,) if self._only is not None else [keys.slope for keys in self._keys]

    def _held_in(self, step: int) -> int:
        """Distinct KV blocks held once decoding sequences have theirs for `step`."""
        return self.tree.held_blocks + self._blocks.at(step) + self._prefill_blocks + self.unseen_blocks

    # -- one stretch -----------------------------------------------------------------------------------------

    def plan(self) -> int:
        """Schedule the next step; returns how often it can be repeated before the batch has to change.

        0: nothing could be scheduled; if the engine is not idle (an unseen finish holds what is needed), plan again.
        """
        if self._planned:
            self._planned = False
            for fresh in (self.chunks, self.joins, self.admitted, self.preempted):
                fresh.clear()
        if self._limbo:
            self._see_finishes()
        budget, short = self._budget - self.decoding, False
        held = self.planned_blocks = self._held_in(self.step)
        if held > self._kv_blocks or self._partial is not None:
            short = self._make_room()
            budget, partial = self._budget - self.decoding, self._partial
            if partial is not None:
                new = min(partial.total - partial.computed, budget)
                growth = self._growth(partial, new)
                self._prefill_blocks += growth
                self.planned_blocks += growth
                self._take(partial, new)
                budget -= new
        self.blocked = False
        if self.queue:
            short = short or self._admit(budget)
            self.blocked = len(self.queue) > 0 and (short or len(self.running) + len(self._limbo) >= self._seats)
        if self._planned and (self.chunks or self.joins):
            self._idle_plans = 0
            return 1
        if not self.decoding:
            self._idle_plans += 1
            if self._idle_plans > 2 and not self.idle:
                raise RuntimeError("nothing runs and nothing can be admitted")
            return 0
        self._idle_plans = 0
        if self.preempted or (self._limbo and self.queue):
            return 1
        return self._quiet_steps()

    def advance(self, steps: int) -> None:
        """Run the planned batch `steps` times and book what it did."""
        if self._booked:
            self._booked = False
            for fresh in (self.first, self.done, self.resumed):
                fresh.clear()
        self.step = step = self.step + steps
        finishes = self._finishes
        while finishes and finishes[0][0] <= step:
            finish, admission, request = heapq.heappop(finishes)
            if request.finish == finish and request.admission == admission:
                own = self._stop_decoding(request, step - 1)
                request.computed += step - request.start
                request.written = request.output_tok
                self._finish(request, own)
        for request in self._completing:
            self._sample_first(request)
        self._completing.clear()

    def _quiet_steps(self) -> int:
        """Steps until a sequence finishes, blocks run out, or attended keys change their slope."""
        finishes, step = self._finishes, self.step
        while True:
            finish, admission, request = finishes[0]
            if request.finish == finish and request.admission == admission:
                break
            heapq.heappop(finishes)  # preempted since
        steps = finish - step
        for keys in self._bent:
            steps = min(steps, keys.last_alike(step) - step + 1)
        if steps == 1:
            return 1
        if self.planned_blocks + self.decoding * ((steps - 1) // self._size + 1) <= self._kv_blocks:
            return steps  # even if all of them gain a block at the worst moment
        room = self._kv_blocks - self.tree.held_blocks - self._prefill_blocks - self.unseen_blocks
        return self._blocks.last_within(step, steps, room)

    # -- decoding --------------------------------------------------------------------------------------------

    def _sample_first(self, request: Request) -> None:
        """The prompt (with what was written before a preemption) is computed: one token is sampled."""
        self._booked = True
        (self.first if request.written == 0 else self.resumed).append(request)
        request.written += 1
        own = -(-request.total // self._size) - request.hit
        self._prefill_blocks -= own
        remaining = request.output_tok - request.written
        if remaining == 0:
            self._finish(request, own)
            return
        request.start, request.finish = self.step, self.step + remaining
        self.decoding += 1
        heapq.heappush(self._finishes, (request.finish, request.admission, request))
        self._blocks.join(request)
        for keys in self._keys:
            keys.join(request)

    def _stop_decoding(self, request: Request, step: int) -> int:
        """Take a sequence out of the sums over the batch; returns its own blocks in `step`."""
        self.decoding -= 1
        request.finish = NOT_DECODING
        for keys in self._keys:
            keys.leave(request)
        return self._blocks.leave(request, step)

    def _finish(self, request: Request, own_blocks: int) -> None:
        """The last token is sampled; `request.computed` tokens have their KV in the cache."""
        self._booked = True
        del self.running[request]
        self.done.append(request)
        self.unseen_blocks += own_blocks
        if self._async:
            self._limbo.append((self.step, own_blocks, request))
        else:
            self._free(request, own_blocks)

    def _see_finishes(self) -> None:
        """Free what finished early enough to be seen by the plan of this step."""
        limbo = self._limbo
        running = self.decoding or self._partial is not None
        while limbo and (not running or limbo[0][0] < self.step):
            _, own_blocks, request = limbo.popleft()
            self._free(request, own_blocks)

    def _free(self, request: Request, own_blocks: int) -> None:
        """The blocks of a finished request are nobody's any more."""
        if self._caching:
            held = self._held_in(self.step - 1)
            if request.shared:
                self._let_go(request, held, finished=True)
            else:  # the same, for blocks that nobody can hit
                tree = self.tree
                if tree.idle_blocks + held > self._kv_blocks:
                    self._evict_beside(held)
                if request.computed >= self._size:
                    tree.leave_for_nobody(request.computed // self._size)
        self.unseen_blocks -= own_blocks

    # -- admission and chunks --------------------------------------------------------------------------------

    def _admit(self, budget: int) -> bool:
        """Admit from the queue while tokens, seats and blocks last; True if blocks were lacking."""
        seats, size, queue, tree = self._seats - len(self._limbo), self._size, self.queue, self.tree
        room = self._kv_blocks - self.planned_blocks
        while budget > 0 and queue and len(self.running) < seats:
            request = queue[0]
            total = request.prompt_tok + request.written
            most = (total - 1) // size  # the last token is always computed, because its logits are needed
            hit = (tree.root, 0)
            if request.shared:
                self._evict_beside(self.planned_blocks)
                hit = tree.match(request.parts, min(request.shared, most))
            cached = min(hit[1] + self._kept_blocks(request, hit), most) * size
            if request.loaded_tok and not request.written:
                cached = max(cached, min(request.loaded_tok, total - 1))
            new = min(total - cached, budget)
            if new < total - cached and not self._chunked:
                return False
            own = -(-(cached + new) // size) - hit[1]
            needed = own + tree.idle_on_path(hit) if hit[1] else own
            if needed > room:
                return True
            room -= needed
            self.planned_blocks += needed
            queue.take()
            if request.leaf is not None:
                tree.take_back(request.leaf)
                request.leaf = None
            request.node, request.hit = tree.hold(hit) if hit[1] else tree.root, hit[1]
            self._prefill_blocks += own
            self._book_admission(request, cached)
            request.total, request.admission = total, self._admissions
            self._admissions += 1
            self.running[request] = None
            self._partial = request
            self._take(request, new)
            budget -= new
        return False

    def _book_admission(self, request: Request, cached_tok: int) -> None:
        """As `Sequence.book_admission`: what was computed beyond the cached tokens is lost."""
        self.admitted.append(request)
        if request.cached_tok < 0:
            request.cached_tok = cached_tok
        else:
            request.recomputed_tok += request.computed - cached_tok
            if request.recomputed_tok < 0:
                request.cached_tok -= request.recomputed_tok
                request.recomputed_tok = 0
        request.computed = cached_tok

    def _take(self, request: Request, new: int) -> None:
        """Put a chunk of the prompt under way into the planned step; its blocks can be hit from now on."""
        self._planned = True
        before = request.computed
        after = request.computed = before + new
        completes = after == request.total
        if new == 1 and completes and request.written:  # only its latest token lacks KV: a decode like any other
            self.joins.append(before)
        else:
            self.chunks.append((request, new, before, completes))
        if completes:
            self._completing.append(request)
            self._partial = None
        if request.shared > request.hit and self._caching:
            node, moved, _ = self.tree.enter(
                request.node, request.parts, min(after // self._size, request.shared), merge=False
            )
            request.node, request.hit = node, node.end
            self._prefill_blocks -= moved

    # -- KV blocks -------------------------------------------------------------------------------------------

    def _make_room(self) -> bool:
        """Preempt until what is running has blocks for the next step; True if anybody was."""
        while True:
            partial = self._partial
            growth = 0
            if partial is not None:
                budget = self._budget - self.decoding
                growth = self._growth(partial, min(partial.total - partial.computed, budget))
            if self.planned_blocks + growth <= self._kv_blocks:
                return len(self.preempted) > 0
            self._preempt()
            self.planned_blocks = self._held_in(self.step)

    def _growth(self, partial: Request, new: int) -> int:
        """Blocks that `new` more tokens of the prompt under way need."""
        return -(-(partial.computed + new) // self._size) + partial.computed // -self._size

    def _preempt(self) -> None:
        """Throw out the sequence admitted last, or that of the least priority; it keeps its text."""
        if self._by_priority:
            request = max(self.running, key=lambda running: (running.priority, running.number))
        else:
            request = next(reversed(self.running))
        del self.running[request]
        held = self.planned_blocks
        if request is self._partial:
            own = -(-request.computed // self._size) - request.hit
            self._prefill_blocks -= own
            self._partial = None
        else:
            own = self._stop_decoding(request, self.step)
            steps = self.step - request.start
            request.computed += steps
            request.written += steps
        self._let_go(request, held, finished=False)
        request.preemptions += 1
        self._planned = True
        self.preempted.append(request)
        self.queue.put_back(request)

    def _let_go(self, request: Request, held_blocks: int, finished: bool) -> None:
        """Cached blocks of a sequence that stops running stay behind, whole ones only; nobody holds them.

        `held_blocks` are held until now: idle ones that do not fit beside them have been evicted.
        """
        if not self._caching:
            return
        self._evict_beside(held_blocks)
        tree, whole, node = self.tree, request.computed // self._size, request.node
        if request.shared > request.hit:
            node, _, _ = tree.enter(node, request.parts, min(whole, request.shared), merge=True)
        left = whole - node.end
        if left > 0:
            if finished:
                tree.leave_for_nobody(left)
            else:
                request.leaf = tree.leave(node, left)
        if node is not tree.root:
            tree.release(node)
            request.node, request.hit = tree.root, 0

    def _evict_beside(self, held_blocks: int) -> None:
        """Idle blocks that do not fit beside `held_blocks` are gone; nobody looked at them since."""
        tree = self.tree
        surplus = tree.idle_blocks + held_blocks - self._kv_blocks
        if surplus > 0:
            tree.evict(min(surplus, tree.idle_blocks))

    def _kept_blocks(self, request: Request, hit: tuple[Node, int]) -> int:
        """Blocks of a preempted request behind `hit` that are still cached."""
        leaf = request.leaf
        if leaf is None:
            return 0
        self._evict_beside(self.planned_blocks)
        return leaf.blocks if leaf.parent is hit[0] and hit[1] == leaf.parent.end else 0
