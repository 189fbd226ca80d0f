"""The architecture, held: imports point streamer -> clients -> core, and nothing runs on import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
INTERNAL = {"core": {"core"}, "clients": {"clients", "core"}, "streamer": {"streamer", "clients", "core"}}
# What recognising speech needs; the hub's client is loaded where a name is fetched, Triton on GPUs, training brings its
# own.
CORE_LIBRARIES = {"ctc_beam_decoder", "numpy", "torch", "safetensors", "huggingface_hub", "triton"}


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_imports_point_one_way() -> None:
    for package, allowed in INTERNAL.items():
        for file in (ROOT / package).rglob("*.py"):
            wrong = imported(file) & set(INTERNAL) - allowed
            assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"


def test_core_needs_little() -> None:
    for file in (ROOT / "core").rglob("*.py"):
        if "training" in file.parts:
            continue
        foreign = imported(file) - set(sys.stdlib_module_names) - CORE_LIBRARIES - {"core"}
        assert not foreign, f"{file.relative_to(ROOT)} imports {foreign}"


def test_importing_the_front_door_loads_nothing_heavy() -> None:
    code = "import sys, streamer, streamer.cli; print({'torch', 'sounddevice', 'starlette', 'rich'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


HEAVY = {"torch._dynamo", "sympy", "huggingface_hub", "rich", "PIL", "matplotlib", "starlette", "sounddevice", "av"}
TRANSCRIBE = """
import sys
from streamer.cli import main
code = main(sys.argv[1:])
print(code, *sys.modules)
"""


def test_transcribing_loads_only_what_it_needs(sample: Path, tiny_model_dir: Path) -> None:
    """PyTorch's compiler alone would take a second of the start."""
    command = [sys.executable, "-c", TRANSCRIBE, str(sample), "--model", str(tiny_model_dir)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    code, *modules = result.stdout.splitlines()[-1].split()
    assert code == "0" and "torch" in modules and not HEAVY & set(modules)


def test_the_hub_client_is_loaded_only_where_a_name_is_fetched() -> None:
    for file in (ROOT / "core").rglob("*.py"):
        body = ast.parse(file.read_text(encoding="utf-8")).body
        top = {a.name for node in body if isinstance(node, ast.Import) for a in node.names}
        top |= {node.module or "" for node in body if isinstance(node, ast.ImportFrom)}
        assert not {name for name in top if name.split(".")[0] == "huggingface_hub"}, file


@pytest.mark.parametrize("package", sorted(INTERNAL))
def test_every_module_can_be_imported_alone(package: str) -> None:
    """No cycle, no module that another must have loaded first: each in a fresh interpreter's empty registry."""
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in sorted((ROOT / package).rglob("*.py"))
        if file.stem not in ("__main__", "__init__")
    ]
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    for loaded in [m for m in sys.modules if m.split('.')[0] in ('core', 'clients', 'streamer')]:\n"
        "        del sys.modules[loaded]\n"
        "    importlib.import_module(name)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, *modules], cwd=ROOT, check=True)


def test_no_file_names_the_machine_it_was_written_on() -> None:
    """Neither this checkout's path nor this user's home."""
    places = [f"{path}/" for path in (ROOT, Path.home()) if len(path.parts) > 2 or path == Path.home()]
    for file in ROOT.rglob("*"):
        inside = file.relative_to(ROOT).parts
        if file.suffix not in (".py", ".toml", ".md", ".js", ".html", "") or not file.is_file():
            continue
        if any(part.startswith(".") and part != ".ci" for part in inside):
            continue
        text = file.read_text(encoding="utf-8")
        assert not [name for name in places if name in text], file.relative_to(ROOT)
