"""One run: requests go out as the load says, whatever the server does, and nothing is dropped or tried again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from calibration.collect.backends.openai_http import Http, Outcome, clock
from simulator.workload.traffic import Traffic

_LEAD_S, _LEAD_PER_REQUEST_S = 0.02, 2e-5  # tasks are set up before the first request is due
_BEAT_S = 0.01
_TIMER_S = 0.001  # the event loop rounds its timers up to this; what arrives from outside does not wait for them
_MOST_FAILURES_IN_A_ROW = 8  # and twice what is under way: then the server is gone


@dataclass
class Run:
    """What is sent and what came. `beats_late_s`: by how much the event loop was late, sampled: time that a request or
    a chunk may have waited in this client. `cpu_share`: of one core, used by this process."""

    outcomes: list[Outcome]
    start_s: float = 0.0
    end_s: float = 0.0
    beats_late_s: list[float] = field(default_factory=list)
    cpu_share: float = 0.0
    gave_up: bool = False
    out_of_time: bool = False


async def carry_out(
    http: Http, path: str, traffic: Traffic, bodies: Sequence[bytes], run_timeout_s: float | None = None
) -> Run:
    """Send `bodies` as `traffic` says and wait until the last answer has ended, or `run_timeout_s` is over."""
    driver = _Driver(http, path, bodies, Run([Outcome(tokens) for tokens in traffic.output_tok.tolist()]))
    run = driver.run
    beat = asyncio.create_task(_beat(run.beats_late_s))
    cpu_s, began_s = time.process_time(), clock()
    run.start_s = began_s + _LEAD_S + _LEAD_PER_REQUEST_S * len(bodies)
    try:
        async with asyncio.timeout(run_timeout_s):
            await (driver.from_clients(traffic.clients) if traffic.clients else driver.at(traffic.arrival_s.tolist()))
    except TimeoutError:
        run.out_of_time = True
    finally:
        beat.cancel()
    now_s = clock()
    for outcome in run.outcomes:  # what never went out, or was under way when time was up
        if outcome.status == "cut":
            outcome.send_s, outcome.end_s = outcome.send_s or now_s, now_s
    run.end_s = max(outcome.end_s for outcome in run.outcomes) if not run.out_of_time else now_s
    run.cpu_share = (time.process_time() - cpu_s) / max(now_s - began_s, 1e-9)
    return run


@dataclass
class _Driver:
    http: Http
    path: str
    bodies: Sequence[bytes]
    run: Run
    _failed_in_a_row: int = 0
    _under_way: int = 0

    async def from_clients(self, clients: int) -> None:
        """Each client sends its next request when its last one has ended."""
        queue = iter(range(len(self.bodies)))

        async def client() -> None:
            await _until(self.run.start_s)
            free_s = self.run.start_s
            for index in queue:
                await self._send(index, free_s)
                free_s = clock()

        await _all(client() for _ in range(min(clients, len(self.bodies))))

    async def at(self, arrival_s: Sequence[float]) -> None:
        """Each request goes out when it is due, however many are under way."""

        async def request(index: int, due_s: float) -> None:
            await _until(due_s)
            await self._send(index, due_s)

        await _all(request(index, self.run.start_s + after_s) for index, after_s in enumerate(arrival_s))

    async def _send(self, index: int, due_s: float) -> None:
        outcome = self.run.outcomes[index]
        outcome.planned_s = due_s
        if self.run.gave_up:
            outcome.send_s = outcome.end_s = clock()
            outcome.status = f"failed: not sent, {self._failed_in_a_row} requests in a row had failed"
            return
        self._under_way += 1
        try:
            await self.http.stream(self.path, self.bodies[index], outcome)
        finally:
            self._under_way -= 1
        self._failed_in_a_row = 0 if outcome.ok else self._failed_in_a_row + 1
        if self._failed_in_a_row >= _MOST_FAILURES_IN_A_ROW + 2 * self._under_way:
            self.run.gave_up = True


async def _all(tasks: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all; when one breaks or time is up, the others are ended before anything else happens."""
    async with asyncio.TaskGroup() as group:
        for task in tasks:
            group.create_task(task)


async def _until(at_s: float) -> None:
    """Wait for a time; the last of it by turns, as a timer would come up to `_TIMER_S` late."""
    while (left_s := at_s - clock()) > 0.0:
        await asyncio.sleep(left_s - _TIMER_S if left_s > 1.5 * _TIMER_S else 0.0)


async def _beat(late_s: list[float]) -> None:
    """Wake up again and again, and note how long something that is ready now has to wait for its turn."""
    while True:
        due_s = clock() + _BEAT_S + _TIMER_S
        await asyncio.sleep(_BEAT_S)
        woken_s = clock()
        await asyncio.sleep(0)  # one round of all that is ready
        late_s.append(max(0.0, woken_s - due_s) + clock() - woken_s)
