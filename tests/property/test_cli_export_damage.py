"""No damage to an export of letters goes unnoticed."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrigger.cli.letter_file import LetterWriter, letters_in
from outrigger.core.errors import Corrupt, Invalid
from outrigger.v1.letter_pb2 import Letter


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("export") / "letters"


def export(requests: list[bytes]) -> bytearray:
    writer = LetterWriter()
    lines = [writer.header()]
    for number, request in enumerate(requests):
        digest = hashlib.sha256(request).digest()
        letter = Letter(letter_id=str(number), request=request, request_digest=digest)
        lines.append(writer.letter(letter))
    return bytearray("".join([*lines, writer.trailer()]).encode())


REQUESTS = st.lists(st.binary(max_size=64), max_size=4)


@given(requests=REQUESTS)
def test_every_request_comes_back(path, requests):
    """Whatever bytes a request has, they survive the file."""
    path.write_bytes(export(requests))
    assert [letter.request for letter in letters_in(path)] == requests


@given(requests=REQUESTS, data=st.data())
def test_any_changed_byte_is_noticed(path, requests, data):
    """Whatever byte is changed, no export passes as whole."""
    content = export(requests)
    # The last byte is the line break after the trailer and means nothing.
    at = data.draw(st.integers(0, len(content) - 2))
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises((Corrupt, Invalid)):
        list(letters_in(path))


@given(requests=REQUESTS, data=st.data())
def test_any_cut_is_noticed(path, requests, data):
    """Wherever the file ends too early, it is refused."""
    content = export(requests)
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 2))])
    with pytest.raises((Corrupt, Invalid)):
        list(letters_in(path))
