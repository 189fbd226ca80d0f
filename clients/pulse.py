"""The sources of PulseAudio.

PortAudio's ALSA side shows PulseAudio (and PipeWire in its place) as the one device `pulse`; the sources behind it
are reached as `pulse:SOURCE`, through the variable that libpulse reads.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator

PULSE = "pulse"
SYSTEM_MONITOR = "pulse:@DEFAULT_MONITOR@"  # libpulse's name for what the speakers play
NO_PLUGIN = (
    "PulseAudio is not to be reached through ALSA; install its plugin (Debian and Ubuntu: "
    "apt install libasound2-plugins, Fedora: dnf install alsa-plugins-pulseaudio)"
)


def pulse_sources() -> list[tuple[str, str]]:
    """Names and formats of PulseAudio's sources, monitors of outputs among them; none without `pactl`."""
    if shutil.which("pactl") is None:
        return []
    try:
        command = ["pactl", "list", "short", "sources"]
        lines = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
    except (subprocess.SubprocessError, OSError):
        return []
    fields = [line.split("\t") for line in lines]
    return [(field[1], field[3]) for field in fields if len(field) > 3]


def has_gone(name: str) -> bool:
    """Whether `pulse:SOURCE` is not there: PulseAudio would silently give another one instead, as it does to a stream
    whose source is unplugged."""
    source = name.removeprefix(f"{PULSE}:")
    if source in (name, "") or source.startswith("@"):
        return False
    known = [each for each, _ in pulse_sources()]
    return bool(known) and source not in known


@contextlib.contextmanager
def pulse_source(source: str | None) -> Iterator[None]:
    """While a device is opened: libpulse reads the source's name from the environment."""
    before = os.environ.get("PULSE_SOURCE")
    if source is not None:
        os.environ["PULSE_SOURCE"] = source
    try:
        yield
    finally:
        if source is not None:
            os.environ.pop("PULSE_SOURCE")
            if before is not None:
                os.environ["PULSE_SOURCE"] = before
