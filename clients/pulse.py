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
ALIASES = (PULSE, "default", "pipewire")  # ALSA's devices behind which PulseAudio's default source is
SYSTEM_MONITOR = "@DEFAULT_MONITOR@"  # libpulse's name for what the speakers play
NO_PLUGIN = (
    "PulseAudio is not to be reached through ALSA; install its plugin (Debian and Ubuntu: "
    "apt install libasound2-plugins, Fedora: dnf install alsa-plugins-pulseaudio)"
)


def pactl(*arguments: str) -> list[str]:
    """Lines of its answer; none where there is no PulseAudio."""
    if shutil.which("pactl") is None:
        return []
    try:
        done = subprocess.run(["pactl", *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (subprocess.SubprocessError, OSError):
        return []
    return done.stdout.splitlines()


def pulse_sources() -> list[tuple[str, str]]:
    """Names and formats of PulseAudio's sources, monitors of outputs among them; none without `pactl`."""
    fields = [line.split("\t") for line in pactl("list", "short", "sources")]
    return [(field[1], field[3]) for field in fields if len(field) > 3]


def default_source() -> str | None:
    """PulseAudio's name of the usual microphone."""
    return next(iter(pactl("get-default-source")), None)


def monitor_of_default() -> str | None:
    """The source that hears what the usual loudspeaker plays."""
    sink = next(iter(pactl("get-default-sink")), None)
    known = [name for name, _ in pulse_sources()]
    return f"{sink}.monitor" if f"{sink}.monitor" in known else None


def has_gone(source: str | None) -> bool:
    """Whether a source is not there: PulseAudio would silently give another one instead, as it does to a stream whose
    source is unplugged."""
    if source is None or source.startswith("@"):
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
