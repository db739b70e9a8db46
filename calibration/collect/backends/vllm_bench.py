"""The back-end "vllm-bench": a server measured by vLLM's own load generator, `vllm bench serve`, one process per run.

The client's clock starts when a request is sent, after it has waited for a free client; the lists that
`--save-detailed` writes give each request's send time, first token and gaps between chunks. What the server is
configured as is asked of it, as the openai back-end does. `vllm bench latency` is not used: it starts an engine for
every point and tells the duration of whole batches only, which the vllm back-end measures token by token.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from calibration.collect.backends import BackendOptions
from calibration.collect.backends.openai_address import parse_address
from calibration.collect.backends.vllm_engine import model_argument
from calibration.collect.point import Backend, BackendError, EngineFacts, Observation, Point, RequestTimes, seed_of

_LISTS = ("input_lens", "output_lens", "ttfts", "itls", "start_times", "errors")
_WARM_UP_REQUESTS = 16


def open_backend(options: BackendOptions) -> VllmBench:
    """The load generator, with the server asked for its configuration. BackendError when either is not there."""
    program = shutil.which("vllm")
    if program is None:
        raise BackendError(
            "back-end 'vllm-bench' needs the program vllm, which is not installed; try: pip install vllm"
        )
    from calibration.collect.backends import openai_client

    return VllmBench(options, program, openai_client.open_backend(options))


class VllmBench:
    """`vllm bench serve` against a server that is there already; `server` tells its configuration."""

    def __init__(self, options: BackendOptions, program: str, server: Backend) -> None:
        self._options, self._program, self._server = options, program, server
        self._root = parse_address(options.base_url, options.allow_remote).root

    def facts(self) -> EngineFacts:
        """What the server tells of itself."""
        return self._server.facts()

    def warm_up(self, point: Point) -> None:
        """Some requests of the point's shape, unmeasured."""
        self._bench(point, self._salted(0), requests=min(point.num_requests, max(point.concurrency, _WARM_UP_REQUESTS)))

    def run(self, point: Point, seed: int) -> Observation:
        """One run of the load generator. BackendError when it fails or does not write what is needed."""
        seed = self._salted(seed)
        seen = observation(self._bench(point, seed, point.num_requests))
        return replace(seen, notes=(*seen.notes, f"the load generator's seed is {seed}"))

    def close(self) -> None:
        """Close the connection to the server; the server stays."""
        self._server.close()

    def _salted(self, seed: int) -> int:
        """The generator draws its prompts by its seed: another one at every start of a measurement."""
        return seed_of(f"{self._options.salt}/{seed}") if self._options.salt else seed

    def _served_model(self) -> str | None:
        return self._server.facts().settings.get("served_model")

    def _bench(self, point: Point, seed: int, requests: int) -> dict[str, Any]:
        model, served = model_argument(self._options.model, dummy_weights=True), self._served_model()
        with tempfile.TemporaryDirectory() as folder:
            command = serve_command(self._program, self._root, model, point, seed, requests, folder, served)
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
                raise BackendError(f"vllm bench serve ended with code {done.returncode}: {said[-1][:300]}")
            return _result(Path(folder) / "result.json")


def serve_command(
    program: str, root: str, model: str, point: Point, seed: int, requests: int, folder: str,
    served_model: str | None = None,
) -> list[str]:  # fmt: skip
    """The command line of one run; the API key, if any, is in the environment (OPENAI_API_KEY).

    `model`: as Hugging Face spells it, or a folder; the generator takes the tokeniser from there. Without its own check
    of the server: that sends the first prompt of the run, which a server with a prefix cache then knows already.
    BackendError for a load that the generator does not have.
    """
    if point.load not in ("closed_loop", "burst", "open_loop"):
        raise BackendError(f"vllm bench serve runs closed_loop, burst and open_loop, found load '{point.load}'")
    command = [
        program, "bench", "serve", "--backend", "vllm", "--base-url", root, "--model", model,
        "--dataset-name", "random", "--random-input-len", str(point.input_tok),
        "--random-output-len", str(point.output_tok), "--random-range-ratio", "0.0",
        "--num-prompts", str(requests), "--request-rate", f"{point.request_rate_rps or 'inf'}",
        "--ignore-eos", "--temperature", "0", "--seed", str(seed), "--num-warmups", "0", "--disable-tqdm",
        "--ready-check-timeout-sec", "0", "--save-result", "--save-detailed", "--result-dir", folder,
        "--result-filename", "result.json",
    ]  # fmt: skip
    if served_model:
        command += ["--served-model-name", served_model]
    if point.load == "closed_loop":
        command += ["--max-concurrency", str(point.concurrency)]
    return command


def _result(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackendError(f"vllm bench serve wrote no result: {error}") from None
    return found if isinstance(found, dict) else {}


def observation(result: dict[str, Any]) -> Observation:
    """A saved result as an observation. BackendError when it lacks the lists per request."""
    missing = [name for name in _LISTS if not isinstance(result.get(name), list)]
    if missing:
        raise BackendError(
            f"vllm bench serve wrote no '{missing[0]}'; expected a vLLM newer than 0.11 with --save-detailed"
        )
    requests = tuple(_request(*row) for row in zip(*(result[name] for name in _LISTS)))
    ok = [request for request in requests if request.status == "ok"]
    if not ok:
        raise BackendError(f"no request ended well: {requests[0].status if requests else 'none was sent'}")
    start_s = min(request.send_s for request in requests)
    last_s = max(request.token_s[-1] for request in ok)
    notes = ("lengths by the generator's tokeniser",)
    return Observation(requests, start_s, max(last_s, start_s + float(result.get("duration") or 0.0)), notes=notes)


def _request(
    input_tok: int, output_tok: int, ttft_s: float, gaps_s: list[float], send_s: float, error: str
) -> RequestTimes:
    """One request; gaps are between chunks, whose tokens are spread evenly where they are not one each."""
    if error or not output_tok:
        reason = (error or "no token").strip().splitlines()[-1][:200]
        return RequestTimes(send_s, (), input_tok, 0, f"failed: {reason}")
    ends = tuple(accumulate(gaps_s, initial=send_s + ttft_s))
    counts = tuple(output_tok * (i + 1) // len(ends) - output_tok * i // len(ends) for i in range(len(ends)))
    one_each = output_tok == len(ends)
    return RequestTimes(send_s, ends, input_tok, output_tok, "ok", None, None if one_each else counts)
