"""Files that appear whole or not at all."""

import stat
from pathlib import Path

import pytest

from outrigger.cli.new_file import new_file, open_for_reading
from outrigger.core.errors import Invalid, Refused


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def write(path: Path, content: bytes, *, force: bool, error: Exception | None = None):
    with new_file(path, force=force) as file:
        file.write(content)
        if error is not None:
            raise error


def test_file_gets_its_name_at_the_end(tmp_path):
    """Nothing is there before everything is; it is private."""
    path = tmp_path / "f"
    with new_file(path, force=False) as file:
        file.write(b"all")
        assert not path.exists()
    assert path.read_bytes() == b"all"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names(tmp_path) == ["f"]


def test_failure_leaves_what_was_there(tmp_path):
    """An error within leaves the old file, and no part of the new one."""
    path = tmp_path / "f"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError):
        write(path, b"new", force=True, error=ZeroDivisionError())
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["f"]


def test_full_disk_is_told(tmp_path):
    """A failing write names the file and leaves nothing behind."""
    path = tmp_path / "f"
    full = OSError(28, "No space left on device")
    with pytest.raises(Refused, match="could not be written: No space"):
        write(path, b"new", force=False, error=full)
    assert names(tmp_path) == []


def test_existing_file_is_kept_unless_forced(tmp_path):
    """Nothing is replaced by accident."""
    path = tmp_path / "f"
    path.write_bytes(b"old")
    with pytest.raises(Invalid, match="already there: name another, or give --force"):
        write(path, b"new", force=False)
    write(path, b"new", force=True)
    assert path.read_bytes() == b"new"


def test_places_that_cannot_be_written(tmp_path):
    """A directory, and a directory that is not there."""
    for path, told in ((tmp_path, "is a directory"), (tmp_path / "no" / "f", "cannot")):
        with pytest.raises(Invalid, match=told):
            write(path, b"new", force=True)


def test_reading_what_is_not_there(tmp_path):
    """A file that cannot be read says why."""
    with pytest.raises(Invalid, match=r"cannot read .*: No such file"):
        open_for_reading(tmp_path / "no")
    with pytest.raises(Invalid, match="not a regular file"):
        open_for_reading(tmp_path)
    (tmp_path / "f").write_bytes(b"x")
    with open_for_reading(tmp_path / "f") as file:
        assert file.read() == b"x"
