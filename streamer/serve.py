"""`streamer serve`: the app in uvicorn, with its sockets, signals, limits and keys."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import math
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import numpy as np
import torch
import uvicorn
from starlette.applications import Starlette

from core.audio import HOP
from core.engine import Engine
from core.windows import StreamConfig
from streamer.auth import Access, is_loopback_name, plain_host, plain_origin
from streamer.http import http_protocol, websocket_protocol
from streamer.hub import Hub
from streamer.limits import Limits
from streamer.protocols.native import ProtocolError, Start, parse_start
from streamer.recognizer import Recognizer, read_hotwords
from streamer.server import create_app

STEP_S = 0.3  # a worker with one core takes no longer, or gets more


class ServerError(Exception):
    """The server cannot run as asked; the message is for the user."""


class Server(uvicorn.Server):
    """uvicorn that lets every session say its last words before connections are closed, and then returns."""

    def __init__(self, config: uvicorn.Config, hub: Hub) -> None:
        super().__init__(config)
        self.hub = hub
        self.is_broken = False  # the recogniser has stopped

    async def on_tick(self, counter: int) -> bool:
        """As uvicorn's. Without a recogniser it ends, so that its supervisor begins it anew."""
        self.is_broken = self.is_broken or not self.hub.scheduler.is_alive
        return await super().on_tick(counter) or self.is_broken

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, with a limit for the handshake of TLS, which asyncio gives a minute."""
        await super().startup([])
        config, loop = self.config, asyncio.get_running_loop()

        def protocol() -> asyncio.Protocol:
            return config.http_protocol_class(config, self.server_state, self.lifespan.state)  # type: ignore[call-arg]

        handshake_s = self.hub.limits.header_s if config.ssl else None
        for one in sockets or ():
            self.servers.append(
                await loop.create_server(
                    protocol, sock=one, ssl=config.ssl, ssl_handshake_timeout=handshake_s, backlog=config.backlog
                )
            )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        await self.hub.drain()
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn would leave the app as it is
            await self.lifespan.shutdown()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but the signal is not raised again at the end: an orderly stop exits with 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.signal(sig, self.stop) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)

    def stop(self, sig: int, frame: FrameType | None) -> None:
        """Drains; at the second time stops at once."""
        self.force_exit = self.should_exit
        self.should_exit = True
        if self.force_exit:
            self.hub.give_up()


def make_server(app: Starlette, limits: Limits, tls_cert: str | None = None, tls_key: str | None = None) -> Server:
    """uvicorn with this app. Its log would show keys in query strings: only warnings are let through."""
    config = uvicorn.Config(
        app,
        http=http_protocol(limits.header_s, limits.connections),
        ws=websocket_protocol({"/v1/stream": limits.message_bytes}),
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws_max_size=limits.whole_bytes,
        ws_ping_interval=20,
        ws_ping_timeout=60,  # a pong may queue behind audio that is not read yet
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=5,
        ssl_certfile=tls_cert,
        ssl_keyfile=tls_key,
    )
    return Server(config, app.state.hub)


def listen(host: str, port: int) -> socket.socket:
    """Raises ServerError where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as e:
        raise ServerError(f"cannot listen on {host} port {port}: {getattr(e, 'strerror', None) or e}") from e


def gather_keys(given: Sequence[str], path: str | None, environment: str) -> list[str]:
    """Keys of the command line, of a file (one a line) and of the environment (separated by spaces).

    Raises:
        ServerError: the file cannot be read, or holds none.
    """
    keys = [*given, *environment.split()]
    if path is not None:
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as e:
            raise ServerError(f"cannot read --api-key-file {path}: {getattr(e, 'strerror', None) or e}") from e
        found = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
        if not found:
            raise ServerError(f"--api-key-file {path} holds no key; expected one a line")
        keys += found
    return keys


def gather_origins(given: Sequence[str]) -> tuple[str, ...]:
    """As browsers send them. Raises ServerError where one is not what a browser would send."""
    return plain_values(given, plain_origin, "--allow-origin must be like https://example.org")


def gather_hosts(given: Sequence[str]) -> tuple[str, ...]:
    """Names in lower case. Raises ServerError where one is more than a name."""
    return plain_values(given, plain_host, "--allow-host must be a name without a port, like asr.example.org")


def plain_values(given: Sequence[str], plain: Callable[[str], str | None], expected: str) -> tuple[str, ...]:
    """Raises ServerError, which says what is expected, where one has no plain form."""
    values = []
    for value in given:
        form = plain(value)
        if form is None:
            raise ServerError(f"{expected}. Found: {value}")
        values.append(form)
    return tuple(values)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_cores(engines: Sequence[Engine], threads: int) -> int:
    """Workers of the scheduler: one a core, or fewer with several cores each where a step takes one core too long.

    A step's products are small: two cores that share them gain little, two that run steps of their own nearly double.
    On a GPU two: while it computes the steps of one, the other makes words of those before.
    """
    kinds = {engine.model.model.device.type for engine in engines}
    if kinds != {"cpu"}:
        return 2 if kinds == {"cuda"} else 1
    torch.set_num_threads(1)
    samples = np.zeros(HOP * StreamConfig.preset("balanced").window, np.float32)
    slowest_s = 0.0
    for engine in engines:
        engine.model.emit([samples])  # the first is slow
        began = time.perf_counter()
        engine.model.emit([samples])
        slowest_s = max(slowest_s, time.perf_counter() - began)
    each = min(threads, math.ceil(slowest_s / STEP_S))
    torch.set_num_threads(each)
    return threads // each


def check_exposure(host: str, keys: Sequence[str], allow_public: bool) -> bool:
    """Whether only this machine can connect.

    Raises:
        ServerError: others could, and nothing would keep them out.
    """
    if any(not key.strip() for key in keys):
        raise ServerError("--api-key is empty; expected a secret, such as `openssl rand -hex 24` prints")
    if is_loopback_name(host):
        return True
    if not keys and not allow_public:
        raise ServerError(
            f"{host} can be reached from other machines, and anybody could use this server: "
            "set --api-key KEY, or say --allow-public"
        )
    return False


def run_server(args: argparse.Namespace) -> int:
    """`streamer serve`: runs until SIGINT or SIGTERM, then drains.

    Raises:
        ServerError: the options do not go together, or the address cannot be had.
    """
    keys = gather_keys(args.api_key, args.api_key_file, os.environ.get("STREAMER_API_KEY", ""))
    is_loopback = check_exposure(args.host, keys, args.allow_public)
    origins, hosts = gather_origins(args.allow_origin), gather_hosts(args.allow_host)
    if bool(args.tls_key) > bool(args.tls_cert):
        raise ServerError("--tls-key needs --tls-cert, the certificate that belongs to it")
    for name in ("max_sessions", "sessions_per_client"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ServerError(f"--{name.replace('_', '-')} must be at least 1. Found: {value}")
    if args.wyoming_port is not None and not is_loopback and not args.allow_public:
        raise ServerError(
            f"--wyoming-port: Wyoming knows no keys, and {args.host} can be reached from other machines: "
            "say --allow-public if anybody who reaches it may use it"
        )
    listener = listen(args.host, args.port)
    wyoming = None if args.wyoming_port is None else listen(args.host, args.wyoming_port)
    threads = args.threads or usable_cores()
    names = dict.fromkeys(args.model)
    hotwords = read_hotwords(args.hotwords)
    recognizers = [Recognizer.load(name, args.device, args.dtype, threads, args.lm, hotwords) for name in names]
    engine, *others = [recognizer.engine for recognizer in recognizers]
    for one in (engine, *others):
        one.model.reserve(args.max_sessions)
    limits = Limits(
        sessions=args.max_sessions,
        by_load=not args.no_load_limit,
        sessions_per_client=args.sessions_per_client,
        resume_s=args.resume_seconds,
        connections=4 * args.max_sessions + 256,
    )
    access = Access(tuple(keys), is_loopback, origins, hosts)
    try:
        defaults = parse_start({"latency": args.latency, "refresh_ms": args.refresh_ms}, Start(model=engine.model.name))
    except ProtocolError as e:
        raise ServerError(f"--{str(e).replace('_', '-')}") from e
    app = create_app(engine, defaults, access, limits, others, wyoming, share_cores([engine, *others], threads))
    server = make_server(app, limits, args.tls_cert, args.tls_key)
    gc.collect()
    gc.freeze()  # models and modules stay: looking through them takes a collection 70 ms, in which nobody is served
    try:
        server.config.load()
    except (ssl.SSLError, OSError) as e:
        raise ServerError(f"cannot use {args.tls_cert} for TLS: {e}") from e
    scheme = "https" if args.tls_cert else "http"
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    models = ", ".join(names)
    print(f"streamer: {models} at {scheme}://{shown}:{port} (Ctrl+C stops)", file=sys.stderr, flush=True)
    if wyoming is not None:
        print(f"streamer: Wyoming at tcp://{shown}:{wyoming.getsockname()[1]}", file=sys.stderr, flush=True)
    server.run(sockets=[listener])
    if server.is_broken:
        raise ServerError("the recogniser has stopped; its error is in the log")
    return 0 if server.started else 1
