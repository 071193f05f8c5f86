"""The layout is held by machines; these tests hold the machines to account."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FORBIDDEN = {
    "sidecar imports controller": ("sidecar/policy/window.py", "import controller"),
    "policy reads a clock": ("sidecar/policy/window.py", "import time"),
    "policy imports grpc": ("controller/policy/fleet.py", "import grpc"),
    "redis outside its module": ("sidecar/letters/journal.py", "import redis"),
    "psutil outside its module": ("controller/reconcile.py", "import psutil"),
    "stubs in a wire": (
        "sidecar/wire/grpcio.py",
        "from outrigger.v1 import agent_pb2",
    ),
    "kernel imports the command": ("outrigger/core/ids.py", "import outrigger.cli"),
    "client imports the server kernel": (
        "outrigger/client/__init__.py",
        "import outrigger.core.rpc.chain",
    ),
}

BANNED = [
    "import asyncio\n\n\nasync def f() -> None:\n    asyncio.create_task(f())\n",
    "import asyncio\n\n\nasync def f() -> None:\n    asyncio.ensure_future(f())\n",
    "import time\n\nT = time.time()\n",
    "import os\n\nE = os.environ\n",
    "import random\n\nR = random.random()\n",
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The packages and their settings, to be broken."""
    folder = tmp_path_factory.mktemp("tree")
    for package in ("outrigger", "sidecar", "controller"):
        shutil.copytree(
            ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pyc*")
        )
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def contracts(folder):
    """Run the import contracts in a folder."""
    command = "from importlinter.cli import lint_imports_command as c; c()"
    return subprocess.run(
        [sys.executable, "-P", "-c", command, "--no-cache"],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_contracts_hold(copy):
    """The tree as committed keeps every import contract."""
    result = contracts(copy)

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("case", FORBIDDEN)
def test_a_forbidden_import_fails_the_contracts(copy, case):
    """Each import added on purpose is caught."""
    name, line = FORBIDDEN[case]
    path = copy / name
    before = path.read_text()
    path.write_text(before + f"\n{line}\n")
    try:
        result = contracts(copy)
    finally:
        path.write_text(before)

    assert result.returncode == 1, result.stdout + result.stderr
    assert "BROKEN" in result.stdout


@pytest.mark.parametrize("source", BANNED)
def test_unbounded_tasks_and_stray_clocks_fail_the_lint(tmp_path, source):
    """A task outside an error boundary, or a clock outside its file, is caught."""
    folder = tmp_path / "sidecar"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "stray.py").write_text(source)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    result = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--select", "TID251", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert "TID251" in result.stdout


def test_nobody_makes_a_task_by_the_loop():
    """`loop.create_task` escapes the lint's names, so it is looked for as text."""
    found = [
        str(path.relative_to(ROOT))
        for package in ("outrigger", "sidecar", "controller")
        for path in (ROOT / package).rglob("*.py")
        if ".create_task(" in path.read_text()
    ]

    assert found == ["outrigger/core/tasks.py"]
