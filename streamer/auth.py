"""Who may connect: API keys, and the Origin and Host headers that browsers send.

A websocket knows no CORS: without these checks any page that a user visits could use a server on their own
machine (cross-site websocket hijacking), or reach it under a name of its own (DNS rebinding).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

SCHEMES = ("token", "bearer", "realtime", "ws")  # subprotocols that may be answered; never the key
PORTS = {"http": 80, "https": 443}
NAME = re.compile(r"[a-z0-9_.-]+")
OPENAI_KEY = "openai-insecure-api-key."


@dataclass(frozen=True, slots=True)
class Access:
    """The rules of one server."""

    keys: tuple[str, ...] = ()  # none: everybody
    is_loopback: bool = True  # bound to this machine only
    origins: tuple[str, ...] = ()  # allowed besides the server's own, as `plain_origin` has them
    hosts: tuple[str, ...] = ()  # names of this server besides loopback's, as `plain_host`; empty if public: any

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
        if origin is None:
            return True
        plain, scheme = plain_origin(origin), origin.partition("://")[0]
        if plain is not None and (plain in self.origins or plain == plain_origin(f"{scheme}://{host}")):
            return True
        name = host_name(origin)
        return self.is_loopback and name is not None and is_loopback_name(name)

    def check_host(self, host: str | None) -> bool:
        """A loopback server answers to the names of loopback only."""
        name = host_name(f"http://{host or ''}")
        if name is None:
            return False
        if name in self.hosts:
            return True
        return is_loopback_name(name) if self.is_loopback else not self.hosts


def host_name(url: str) -> str | None:
    """In lower case, an IPv6 address without brackets; None where there is none."""
    try:
        parts = urlsplit(url)
        name, _ = parts.hostname, parts.port
    except ValueError:
        return None
    return name or None


def plain_origin(origin: str) -> str | None:
    """As browsers send it, `HTTPS://Example.org:443` -> `https://example.org`; None where it is no origin of pages."""
    name = host_name(origin)
    if name is None:
        return None
    parts = urlsplit(origin)
    host = f"[{name}]" if ":" in name else name
    port = "" if parts.port in (None, PORTS.get(parts.scheme)) else f":{parts.port}"
    is_bare = origin.partition("://")[2] == parts.netloc and "@" not in parts.netloc and "*" not in name
    return f"{parts.scheme}://{host}{port}" if is_bare and parts.scheme in PORTS else None


def plain_host(host: str) -> str | None:
    """A name or address in lower case and without brackets; None where it is none, as with a port."""
    name = host.lower()
    try:
        return str(ipaddress.ip_address(name.removeprefix("[").removesuffix("]")))
    except ValueError:
        return name if NAME.fullmatch(name) else None


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
