"""The rules of the house, as tests. Each message names the remedy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("protocol", "fmrec_agent", "fmrec_manager")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
BESIDE = ("tests", "scripts", "examples")
EVERYTHING = sorted([*SOURCES, *(path for folder in BESIDE for path in (ROOT / folder).rglob("*.py"))])
PURE = [path for path in SOURCES if path.is_relative_to(ROOT / "protocol") and not path.is_relative_to(ROOT / "protocol" / "aio")]
DECIDING = ("root", "round", "liveness", "retrieval", "selection", "orders", "ballot", "standby", "arrivals")
MACHINES = [ROOT / "fmrec_manager" / f"{name}.py" for name in DECIDING]
FORBIDDEN_IN_PURE = {"asyncio", "uvloop", "socket", "selectors", "time", "logging", "torch", "threading", "os", "datetime", "secrets"}
FORBIDDEN_NAMES = {"config", "utils", "types", "asyncio", "helpers", "common", "base"}


def imports(path: Path) -> set[str]:
    """Every module that the file imports, at the top or inside a function, outside `if TYPE_CHECKING`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def top(modules: set[str]) -> set[str]:
    return {module.split(".")[0] for module in modules}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [*PURE, *MACHINES], ids=relative)
def test_decisions_are_pure(path: Path) -> None:
    """DESIGN 4: decisions take time, chance and I/O as arguments."""
    wrong = top(imports(path)) & FORBIDDEN_IN_PURE
    remedy = "pass `now`, a random.Random or an effect instead, or move it to protocol/aio"
    assert not wrong, f"{relative(path)} imports {sorted(wrong)}: {remedy}"
    attributes = {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    called = {name for name in attributes if name.startswith("random.")}
    assert called <= {"random.Random"}, f"{relative(path)} uses the global random source ({called}): take a random.Random"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_who_imports_whom(path: Path) -> None:
    """DESIGN 3: protocol <- protocol.aio <- agent, manager, which never import each other."""
    modules, tops, package = imports(path), top(imports(path)), path.relative_to(ROOT).parts[0]
    strangers = tops & (set(PACKAGES) - {package, "protocol"} | {"tests", "scripts", "examples", "configs"})
    if package == "protocol":
        strangers |= tops & {"fmrec_agent", "fmrec_manager"}
    assert not strangers, f"{relative(path)} imports {sorted(strangers)}: what both need belongs into protocol/"
    if path in PURE:
        shells = [module for module in modules if module.startswith("protocol.aio")]
        assert not shells, f"{relative(path)}: the core never imports its shell; return an effect"


@pytest.mark.parametrize(
    ("module", "only"),
    [("msgpack", {"protocol/wire/codec.py"}), ("uvloop", {"protocol/aio/process.py"})],
)
def test_one_importer(module: str, only: set[str]) -> None:
    found = {relative(path) for path in SOURCES if module in top(imports(path))}
    assert found <= only, f"{sorted(found - only)} import {module}: only {sorted(only)} may"


def test_where_torch_is_known() -> None:
    found = {relative(path) for path in SOURCES if "torch" in top(imports(path))}
    manager = ("fmrec_manager/aggregation.py", "fmrec_manager/aggregates.py", "fmrec_manager/weighted_sum.py")
    rooms = ("fmrec_agent/learning/", "fmrec_agent/launcher.py", *manager)
    strays = sorted(path for path in found if not path.startswith(rooms))
    assert not strays, f"{strays} import torch: learning/ and the manager's {manager} are its rooms (launcher.py warms it)"


def test_the_machines_of_the_overlay_never_import_each_other() -> None:
    machines = {"detector", "pastry", "scribe", "replication", "terms"}
    for name in sorted(machines):
        path = ROOT / "protocol" / "overlay" / f"{name}.py"
        others = {f"protocol.overlay.{other}" for other in (machines | {"node"}) - {name}}
        wrong = imports(path) & others
        assert not wrong, f"{relative(path)} imports {sorted(wrong)}: node.py composes the machines"


@pytest.mark.parametrize("path", EVERYTHING, ids=relative)
def test_a_file_is_read_in_one_sitting(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= 500, f"{relative(path)} has {lines} lines: split it at its nouns (aim at 300, stop at 500)"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 60, f"{relative(path)}:{node.lineno} {node.name} has {length} lines: stop at 60"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_every_file_says_what_it_is(path: Path) -> None:
    assert path.stem not in FORBIDDEN_NAMES, f"{relative(path)}: name it after its noun"
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{relative(path)} opens without a docstring: say what it decides or does"
    pickles = top(imports(path)) & {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
    assert not pickles, f"{relative(path)} imports {pickles}: nothing from a peer is executed (P7)"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec"}, f"{relative(path)}:{node.lineno} calls {node.func.id} (P7)"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{relative(path)}:{node.lineno} has a bare except: name what you expect"


def test_packages_are_all_listed() -> None:
    listed = {line.strip() for line in (ROOT / "setup.cfg").read_text().splitlines()}
    missing = {".".join(path.parent.relative_to(ROOT).parts) for path in SOURCES} - listed
    assert not missing, f"setup.cfg does not list {sorted(missing)} under packages: an installed FMRec would lack them"


@pytest.mark.parametrize("module", ["protocol.overlay.node", "fmrec_agent.cli", "fmrec_manager.cli"])
def test_torch_is_not_imported_where_nobody_needs_it(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=60)
    assert done.returncode == 0, f"importing {module} imports torch: import it where it is used, inside the function"
