"""A real server over loopback, on planted audio, within the test's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from planted import PlantedModel

from core.decoder import Decode
from core.engine import Engine
from streamer.auth import Access
from streamer.hub import Hub
from streamer.limits import Limits
from streamer.serve import Server, listen, make_server
from streamer.server import create_app


@dataclass
class Serving:
    port: int
    hub: Hub
    server: Server
    wyoming_port: int

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/stream"

    async def settled(self) -> None:
        """Waits until no session is connected or at work."""
        async with asyncio.timeout(10):
            while any(live.timer is None for live in self.hub.live.values()):
                await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def serving(
    access: Access | None = None,
    limits: Limits | None = None,
    model: PlantedModel | None = None,
    others: Sequence[PlantedModel] = (),
    decode: Decode | None = None,
    tls: Sequence[Path] = (),
) -> AsyncIterator[Serving]:
    limits = limits or Limits()
    engine, *more = [Engine(one, decode) for one in (model or PlantedModel(), *others)]  # type: ignore[arg-type]
    wyoming = listen("127.0.0.1", 0)
    app = create_app(engine, access=access, limits=limits, others=more, wyoming=wyoming)
    listener = listen("127.0.0.1", 0)
    server = make_server(app, limits, *map(str, tls))
    task = asyncio.create_task(server._serve([listener]))
    try:
        async with asyncio.timeout(60):
            while not server.started:
                if task.done():
                    task.result()
                await asyncio.sleep(0)
        yield Serving(listener.getsockname()[1], app.state.hub, server, wyoming.getsockname()[1])
    finally:
        server.should_exit = True
        await task
