"""The built wheel, not the checkout, is what people install."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = (
    "outrigger/py.typed",
    "outrigger/v1/letter_pb2.pyi",
    "outrigger/demo/corpus/opticks.txt",
    "sidecar/letters/scripts/append.lua",
    "controller/app.py",
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel's contents in a folder of their own."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    assert wheel.name.startswith("outrigger_sidecar-")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_has_what_runs_and_nothing_else(installed):
    """Stubs, scripts and the corpus are in it; tests and benches are not."""
    assert [name for name in NEEDED if not (installed / name).is_file()] == []
    assert {path.name for path in installed.iterdir() if path.is_dir()} == {
        "outrigger",
        "sidecar",
        "controller",
        f"outrigger_sidecar-{version()}.dist-info",
    }


def test_the_command_runs_from_the_wheel(installed, tmp_path):
    """No file of the checkout is needed: it starts from an empty folder."""
    result = subprocess.run(
        [sys.executable, "-P", "-m", "outrigger.cli.main", "sidecar", "--help"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    assert "--agent-id" in result.stdout


def version():
    import outrigger

    return outrigger.__version__
