"""Which replica a request goes to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from simulator.engine.batcher import Request
from simulator.engine.replica import Replica

Router = Callable[[Request, float], Replica]  # (who, when)

# A replica with a long cached prefix is passed over when it has this many more requests than the least loaded one.
IMBALANCE = 32


def round_robin(replicas: Sequence[Replica]) -> Router:
    """One after the other."""
    turn = 0

    def route(_: Request, __: float) -> Replica:
        nonlocal turn
        found = replicas[turn]
        turn = (turn + 1) % len(replicas)
        return found

    return route


def least_loaded(replicas: Sequence[Replica]) -> Router:
    """The smallest 4 x waiting + running, the score of vLLM's data-parallel load balancer; the first of equals."""

    def load(replica: Replica) -> int:
        return 4 * replica.waiting + len(replica.batcher.running)

    return lambda _, __: min(replicas, key=load)


def prefix_aware(replicas: Sequence[Replica]) -> Router:
    """The replica that has cached most of the prompt, unless it is far busier than the least loaded one.

    Without any hit, or with equal ones, the least loaded of them.
    """

    def route(request: Request, at_s: float) -> Replica:
        loads = [replica.outstanding for replica in replicas]
        least, best, most = min(loads), replicas[loads.index(min(loads))], 0
        if not request.shared:
            return best
        for replica, load in sorted(zip(replicas, loads), key=lambda pair: pair[1]):
            if load > least + IMBALANCE or most == request.shared:
                break
            cached = replica.cached_blocks(request, at_s)
            if cached > most:
                best, most = replica, cached
        return best

    return route


ROUTINGS = {"round_robin": round_robin, "least_loaded": least_loaded, "prefix_aware": prefix_aware}
