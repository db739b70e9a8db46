"""The engines that serve one flight: replicas of the main model, and one for every role that another model plays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count, islice

from simulator.engine.gpu import Gpu
from simulator.engine.kv_cache import Parts
from simulator.engine.server import Server


class Fleet:
    """Which engine a call goes to. `main`: replicas of the main model; `roles`: engines by the name of their role.

    A role without an engine of its own is played by the main model. Calls get their numbers here.
    """

    def __init__(self, main: Sequence[Server], roles: Mapping[str, Server] | None = None) -> None:
        self.main, self.roles = tuple(main), dict(roles or {})
        self.env = self.main[0].env
        self._numbers = count()

    @property
    def servers(self) -> tuple[Server, ...]:
        return (*self.main, *self.roles.values())

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """Every GPU once, in the order of the engines."""
        return tuple(dict.fromkeys(server.gpu for server in self.servers))

    def numbers(self, n: int) -> list[int]:
        """The next n free numbers for calls."""
        return list(islice(self._numbers, n))

    def one_engine(self, role: str | None, pinned: bool = False) -> Server | None:
        """The only engine that such a call can go to; None if several can take it."""
        if role in self.roles:
            return self.roles[role]
        return self.main[0] if pinned or len(self.main) == 1 else None

    def route(self, role: str | None, prompt: Parts, pinned: bool = False) -> Server:
        """The engine for a call: among replicas the one with fewest calls, of those the one that has cached most of it.

        pinned: the KV of the call will be read by others, so all such calls meet on the first replica.
        """
        only = self.one_engine(role, pinned)
        if only is not None:
            return only
        least = min(server.outstanding for server in self.main)
        idle = [server for server in self.main if server.outstanding == least]
        return max(idle, key=lambda server: server.cached_tok(prompt)) if len(idle) > 1 else idle[0]

    def check_stuck(self) -> None:
        """`UserError` if a call waits somewhere in vain; for the end of a flight in which nothing happens any more."""
        for server in self.servers:
            server.check_stuck()
