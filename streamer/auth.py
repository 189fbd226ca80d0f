"""Who may connect: API keys, and the Origin and Host headers that browsers send.

A websocket knows no CORS: without these checks any page that a user visits could use a server on their own
machine (cross-site websocket hijacking), or reach it under a name of its own (DNS rebinding).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

SCHEMES = ("token", "bearer", "realtime", "ws")  # subprotocols that may be answered; never the key
OPENAI_KEY = "openai-insecure-api-key."


@dataclass(frozen=True, slots=True)
class Access:
    """The rules of one server."""

    keys: tuple[str, ...] = ()  # none: everybody
    is_loopback: bool = True  # bound to this machine only
    origins: tuple[str, ...] = ()  # allowed besides the server's own, like https://example.org
    hosts: tuple[str, ...] = ()  # names of this server besides loopback's; empty on a public server: any

    def check_key(self, headers: Mapping[str, str], query: Mapping[str, str], subprotocols: Sequence[str]) -> bool:
        """Whether one of the carried keys is right. Takes the same time whichever is, or none."""
        if not self.keys:
            return True
        known = [hashlib.sha256(key.encode()).digest() for key in self.keys]
        is_right = False
        for key in carried_keys(headers, query, subprotocols):
            digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
            for one in known:
                is_right |= hmac.compare_digest(one, digest)
        return is_right

    def check_origin(self, origin: str | None, host: str | None) -> bool:
        """No Origin is no browser. Own pages are let in, and on a loopback server those of this machine."""
        if origin is None or origin in self.origins:
            return True
        parts = urlsplit_or_none(origin)
        if parts is None:
            return False
        if host is not None and parts[1] == host.lower():
            return True
        return self.is_loopback and is_loopback_name(parts[0])

    def check_host(self, host: str | None) -> bool:
        """A loopback server answers to the names of loopback only."""
        parts = urlsplit_or_none(f"http://{host or ''}")
        if parts is None:
            return False
        name = parts[0]
        if name in self.hosts:
            return True
        return is_loopback_name(name) if self.is_loopback else not self.hosts


def urlsplit_or_none(url: str) -> tuple[str, str] | None:
    """Host name and host with port, in lower case; None where there is none."""
    try:
        parts = urlsplit(url)
        name, _ = parts.hostname, parts.port
    except ValueError:
        return None
    return (name.lower(), parts.netloc.lower()) if name else None


def is_loopback_name(host: str) -> bool:
    """`localhost`, 127.0.0.0/8, ::1."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def carried_keys(headers: Mapping[str, str], query: Mapping[str, str], subprotocols: Sequence[str]) -> list[str]:
    """Every key that a request carries: Authorization with or without a scheme, subprotocol, query."""
    keys = [query[name] for name in ("token", "api_key") if name in query]
    scheme, _, key = headers.get("authorization", "").strip().partition(" ")
    if key and scheme.lower() in ("token", "bearer"):
        keys.append(key.strip())
    elif scheme and not key:
        keys.append(scheme)
    keys += [word.removeprefix(OPENAI_KEY) for word in subprotocols if word.startswith(OPENAI_KEY)]
    if subprotocols and subprotocols[0].lower() in ("token", "bearer"):
        keys += subprotocols[1:2]
    return keys


def choose_subprotocol(subprotocols: Sequence[str]) -> str | None:
    """The word to answer with: a browser that offered some breaks off without one."""
    return next((word for word in subprotocols if word.lower() in SCHEMES), None)
