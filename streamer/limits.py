"""What one server allows: sessions, connections, sizes and times."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from streamer.session import SessionLimits


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server allows."""

    sessions: int = 32  # that are transcribed, or wait for a resume
    by_load: bool = True  # and none that would make the others late
    sessions_per_client: int | None = None  # of one key or, without keys, one address
    resume_s: float = 30.0  # a session waits this long for its client to come back
    start_s: float = 10.0  # from a connection to its first message
    idle_s: float = math.inf  # without any message; a protocol's own limit may be shorter
    message_bytes: int = 1 << 20  # of the native protocol, whose clients cut their audio
    whole_bytes: int = 24 << 20  # of the others, whose clients may send a recording at once
    upload_bytes: int = 256 << 20  # of one recording over HTTP
    upload_s: float = 600.0  # until all of it has come
    speed: float = 32.0  # audio is read no faster than this many times real time
    messages_per_s: float = 2000.0  # of one connection; more are read later
    header_s: float = 10.0  # from a connection to the end of its request's headers
    connections: int = 512  # open at once, also those that never say a word
    unread_s: float = 60.0  # a message waits this long for its reader
    drain_s: float = 20.0  # for the last words at shutdown
    session: SessionLimits = field(default_factory=SessionLimits)

    def __post_init__(self) -> None:
        if self.sessions < 1:
            raise ValueError(f"Expected room for at least 1 session. Found: {self.sessions}")
