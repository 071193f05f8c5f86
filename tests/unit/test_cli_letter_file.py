"""Exported letters: what is written is read back, and damage is named."""

import hashlib
import json

import pytest

from outrigger.cli.letter_file import LetterWriter, letters_in
from outrigger.core.errors import Corrupt, Invalid
from outrigger.v1.letter_pb2 import Letter


def letter(number: int) -> Letter:
    request = bytes([number]) * number
    return Letter(
        letter_id=f"id-{number}",
        method="/p.S/M",
        request=request,
        request_digest=hashlib.sha256(request).digest(),
        metadata=[{"key": "x-bin", "value": b"\x00\xff"}],
    )


LETTERS = [letter(number) for number in range(1, 4)]


def export(letters=LETTERS) -> list[str]:
    writer = LetterWriter()
    return [writer.header(), *map(writer.letter, letters), writer.trailer()]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("export") / "letters"


def read(path, lines: list[str]) -> list[Letter]:
    path.write_text("".join(lines))
    return list(letters_in(path))


def test_letters_come_back_as_they_were(path):
    """Every field of every letter survives, in order; none at all is fine too."""
    assert read(path, export()) == LETTERS
    assert read(path, export([])) == []


def test_request_is_plain_base64(path):
    """Other programs can read the request without our code."""
    record = json.loads(export()[1])
    assert record["letter"]["request"] == "AQ=="
    assert len(record["sha256"]) == 64


def damaged(path, lines: list[str]) -> str:
    with pytest.raises(Corrupt) as error:
        read(path, lines)
    assert error.value.reason == "DAMAGED_EXPORT"
    return error.value.message


def test_damage_names_its_line(path):
    """A changed, lost, doubled, moved or foreign line, and a cut file."""
    good = export()
    changed = [*good[:2], good[2].replace("id-2", "id-9"), *good[3:]]
    assert "line 3 is damaged: its SHA-256 does not match" in damaged(path, changed)
    assert "line 4 is damaged: the trailer speaks of 3" in damaged(
        path, good[:2] + good[3:]
    )
    assert "line 6 is damaged: the trailer" in damaged(path, [*good[:2], *good[1:]])
    moved = [good[0], good[2], good[1], *good[3:]]
    assert "out of order" in damaged(path, moved)
    assert "line 5 is damaged: the file ends here" in damaged(path, good[:-1])
    assert "line 4 is damaged: it is not JSON" in damaged(
        path, [*good[:3], good[3][:40], "\n", *good[4:]]
    )
    assert "line 2 is damaged: it is not a JSON object" in damaged(
        path, [good[0], "[]\n"]
    )
    assert "neither a letter nor the trailer" in damaged(path, [good[0], '{"a": 1}\n'])
    assert "line 6 is damaged: there is more" in damaged(path, [*good, "x"])


def forged(**fields: object) -> str:
    """Return a line whose own SHA-256 is right."""
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    return json.dumps({"kind": "letter", "sha256": digest, "letter": fields}) + "\n"


def test_whole_line_that_is_no_letter_is_damage(path):
    """The digest alone does not make a letter."""
    good = export()
    assert "it is not a letter" in damaged(path, [good[0], forged(colour="red")])
    wrong = forged(request="AQ==", request_digest="AQ==")
    assert "does not match request_digest" in damaged(path, [good[0], wrong])


def test_other_files_are_not_exports(path, tmp_path):
    """Another format, another version, no file: each says what was expected."""
    for text in ("", "hello\n", '{"a": 1}\n', "[]\n", "\x00"):
        with pytest.raises(Invalid, match="is not an export of letters: expected"):
            read(path, [text])
    newer = export()[0].replace('"version":1', '"version":2')
    with pytest.raises(Invalid, match="an export of version 2, this command reads 1"):
        read(path, [newer])
    with pytest.raises(Invalid, match=r"cannot read .*: No such file"):
        list(letters_in(tmp_path / "none"))
    with pytest.raises(Invalid, match="is not a regular file"):
        list(letters_in(tmp_path))
