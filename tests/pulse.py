"""A sound server of the test's own, with loudspeakers that lead nowhere: what is played can be recorded."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ASOUNDRC = "pcm.!default { type pulse }\nctl.!default { type pulse }\n"
RATE = 44_100  # of the loudspeakers: nothing here has the recogniser's rate
PATIENCE_S = 60


@dataclass
class Pulse:
    """PulseAudio in a directory of its own. Programs started with `environment` find it, also through ALSA."""

    directory: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
        place = str(self.directory)
        server = f"unix:{self.directory / 'native'}"
        return {
            **inherited,
            "HOME": place,
            "XDG_RUNTIME_DIR": place,
            "PULSE_RUNTIME_PATH": place,
            "PULSE_SERVER": server,
            "OMP_NUM_THREADS": "1",
        }

    def start(self) -> None:
        """Raises TimeoutError where it does not run here."""
        load = [
            f"module-null-sink sink_name=speaker rate={RATE}",
            f"module-null-sink sink_name=other rate={RATE}",
            f"module-native-protocol-unix socket={self.directory / 'native'} auth-anonymous=1",
        ]
        command = ["pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no"]
        for module in load:
            command += ["-L", module]
        environment = {name: value for name, value in self.environment.items() if name != "PULSE_SERVER"}
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        until = time.monotonic() + PATIENCE_S
        while subprocess.run(["pactl", "info"], env=self.environment, capture_output=True, check=False).returncode:
            if time.monotonic() > until or self.process.poll() is not None:
                raise TimeoutError((self.directory / "log").read_text())
            time.sleep(0.05)

    def kill(self) -> None:
        """As if the device were pulled out."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            (self.directory / "native").unlink(missing_ok=True)

    def n_listeners(self) -> int:
        """Programs that record."""
        command = ["pactl", "list", "short", "source-outputs"]
        found = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        return len(found.stdout.splitlines())

    def wait_for_listener(self) -> None:
        until = time.monotonic() + PATIENCE_S
        while not self.n_listeners():
            if time.monotonic() > until:
                raise TimeoutError("nobody listens")
            time.sleep(0.05)

    def load(self, *module: str) -> str:
        """Its number, for `unload`."""
        command = ["pactl", "load-module", *module]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True).stdout.strip()

    def unload(self, number: str) -> None:
        subprocess.run(["pactl", "unload-module", number], env=self.environment, capture_output=True, check=False)

    def play(self, path: Path, sink: str = "speaker") -> None:
        """Until the end of the file."""
        command = ["paplay", "--device", sink, str(path)]
        subprocess.run(command, env=self.environment, check=True, timeout=2 * PATIENCE_S)


@contextlib.contextmanager
def pulse_server(directory: Path) -> Iterator[Pulse]:
    """Skips the test where PulseAudio or its ALSA plugin is not installed."""
    if any(shutil.which(tool) is None for tool in ("pulseaudio", "paplay", "pactl")):
        pytest.skip("PulseAudio is not installed")
    if not any(Path("/usr/lib").glob("*/alsa-lib/libasound_module_pcm_pulse.so")):
        pytest.skip("the ALSA plugin of PulseAudio is not installed")
    (directory / ".asoundrc").write_text(ASOUNDRC)
    server = Pulse(directory)
    server.start()
    try:
        yield server
    finally:
        server.kill()
