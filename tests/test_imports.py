"""The architecture, held: imports point streamer -> clients -> core, and nothing runs on import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
INTERNAL = {"core": {"core"}, "clients": {"clients", "core"}, "streamer": {"streamer", "clients", "core"}}
# What recognising speech needs; the hub's client is loaded where a name is fetched, training brings its own.
CORE_LIBRARIES = {"numpy", "torch", "safetensors", "huggingface_hub"}


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
            # `streamer connect` renders what it receives with the command line's own writer.
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
