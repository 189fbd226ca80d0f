"""The wheel: what is in it, and that it works installed, away from the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).parent.parent
PACKAGES = ("streamer", "core", "clients")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in this environment, so that nothing is downloaded."""
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(target.glob("*.whl"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of a fresh environment with the wheel; its libraries are the running ones'."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    bin_ = folder / ("Scripts" if os.name == "nt" else "bin")
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    pip = [sys.executable, "-m", "pip", "--python", str(bin_ / "python"), "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--no-index", "--disable-pip-version-check", str(wheel)], check=True)
    # Appended to the path: what the wheel brings is found first.
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "libraries.pth").write_text("\n".join(sorted(libraries)) + "\n")
    return bin_


def run(command: Path, *arguments: object, cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    words = [str(command), *map(str, arguments)]
    result = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def is_picture(file: Path) -> bool:
    return file.suffix == ".png" and file.parent in {ROOT / "core" / "training" / "curves", ROOT / "streamer" / "bench"}


def test_the_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size <= 50_000_000


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    """All but the README's pictures."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {
        file.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and not is_picture(file)
    }
    assert {"clients/web/index.html", "clients/web/worklet.js", "core/wav2vec2.py", "streamer/cli.py"} <= expected
    assert {name for name in names if ".dist-info/" not in name} == expected


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    import streamer

    with zipfile.ZipFile(wheel) as archive:
        folder = next(name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name)
        metadata = message_from_bytes(archive.read(f"{folder}/METADATA"))
        entry_points = archive.read(f"{folder}/entry_points.txt").decode()
        assert f"{folder}/licenses/LICENSE" in archive.namelist()
    assert (metadata["Name"], metadata["Version"]) == ("streamer", streamer.__version__)
    assert (metadata["Requires-Python"], metadata["License-Expression"]) == (">=3.11", "MIT")
    assert {"lm", "media", "peers", "dev"} <= set(metadata.get_all("Provides-Extra") or [])
    needed = {line.split(">")[0] for line in metadata.get_all("Requires-Dist") or [] if "extra ==" not in line}
    assert {"torch", "numpy", "safetensors", "soundfile", "soxr"} <= {name.strip() for name in needed}
    assert "streamer = streamer.cli:main" in entry_points


def test_the_installed_command_runs_from_elsewhere(installed: Path, tmp_path: Path) -> None:
    import streamer

    assert run(installed / "streamer", "--version", cwd=tmp_path) == f"streamer {streamer.__version__}\n"
    found = run(
        installed / "python", "-c", "import core, clients; print(core.__file__, clients.__file__)", cwd=tmp_path
    )
    assert all(installed.parent in Path(file).parents for file in found.split())


def test_the_installed_command_transcribes(installed: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "noise.wav", 0.1 * np.random.default_rng(1).standard_normal(24_000), 16_000)
    shown = run(
        installed / "streamer", "noise.wav", "--format", "json", "--model", tiny_model_dir, "--threads", 1, cwd=tmp_path
    )
    assert json.loads(shown)["duration_s"] == 1.5


def test_the_installed_command_knows_the_words_of_the_sample(installed: Path, sample: Path, tmp_path: Path) -> None:
    """With the model and the sample as they come in the wheel."""
    reference = sample.with_suffix(".txt")
    if not (sample.exists() and (sample.parent / "streamer-en").exists()):
        pytest.skip("the embedded model is not in this checkout")
    heard = run(installed / "streamer", sample, "--threads", 1, cwd=tmp_path).split()
    assert len(heard) > 3
    if reference.exists():
        expected = reference.read_text(encoding="utf-8").upper().split()
        assert len(set(expected) & {word.upper() for word in heard}) >= 0.6 * len(set(expected))
