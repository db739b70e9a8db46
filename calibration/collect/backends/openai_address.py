"""Where the server is, and with what key: loopback unless the user says otherwise, keys never in any text."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import socket
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from calibration.collect.point import BackendError

HIDDEN = "[API key]"


@dataclass(frozen=True)
class Address:
    """`root` is scheme://host:port and what stands before /v1."""

    root: str
    loopback: bool


class Secret:
    """An API key, or none. It shows itself to nobody but the header of a request."""

    def __init__(self, key: str | None = None) -> None:
        self._key = key or None
        forms = {key, json.dumps(key)[1:-1], quote(key, safe=""), repr(key)[1:-1]} if key else set()
        self._forms = sorted(forms, key=len, reverse=True)

    def __repr__(self) -> str:
        return "Secret(set)" if self._key else "Secret(none)"

    def __bool__(self) -> bool:
        return self._key is not None

    def headers(self) -> dict[str, str]:
        """The header that carries the key; empty without one."""
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}

    def hide(self, text: str) -> str:
        """`text` without the key, in any of the forms that a server may send back."""
        for form in self._forms:
            text = text.replace(form, HIDDEN)
        return text

    def hide_in(self, value: object) -> object:
        """The same for everything inside a decoded JSON value."""
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, dict):
            return {self.hide(str(name)): self.hide_in(part) for name, part in value.items()}
        return [self.hide_in(part) for part in value] if isinstance(value, list) else value


def key_from_environment(variable: str) -> Secret:
    """The key in an environment variable; none when it is not set. BackendError when no header can carry it."""
    key = os.environ.get(variable, "").strip()
    if re.search(r"[^\x21-\x7e]", key):
        raise BackendError(f"the environment variable {variable} holds blanks or special characters, expected a key")
    return Secret(key)


def parse_address(base_url: str | None, allow_remote: bool) -> Address:
    """The address in `base_url`, with or without /v1 at its end.

    BackendError when it is none, holds a password, or is not loopback although nobody allowed that.
    """
    if not base_url:
        raise BackendError("the openai back-end needs the address of a server (--base-url http://127.0.0.1:8000)")
    try:
        parts = urlsplit(base_url)
        port = parts.port
    except ValueError:
        raise BackendError("the base URL cannot be read, expected one like http://127.0.0.1:8000") from None
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise BackendError(
            "the base URL holds a name, a password or a query; expected scheme, host, port and path only: "
            "keys come from the environment"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise BackendError(f"base URL '{base_url}': expected one like http://127.0.0.1:8000")
    loopback = is_loopback(parts.hostname)
    if not loopback and not allow_remote:
        raise BackendError(
            f"'{parts.hostname}' is not this machine (127.0.0.1, ::1, localhost); expected --allow-remote to measure "
            "a server elsewhere"
        )
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return Address(f"{parts.scheme}://{parts.netloc}{path}", loopback)


def is_loopback(host: str) -> bool:
    """Whether `host` can only be this machine. A name other than localhost may point anywhere tomorrow."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    if host.lower().rstrip(".") != "localhost":
        return False
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(entry[4][0].partition("%")[0]).is_loopback for entry in found)
