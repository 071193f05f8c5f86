"""What a call's metadata says to us, and what of it goes on.

`outrigger-*` is for us and goes no further. `grpc-previous-rpc-attempts` goes on with
our own attempts added to the caller's. All else passes unchanged, repeated keys and
order included.
"""

import re
from typing import Final

from outrigger.core import names
from sidecar.call.descriptor import Metadata, Trailers

_SINGLE: Final = frozenset(
    {names.PREVIOUS_ATTEMPTS_METADATA, names.IDEMPOTENCY_KEY_METADATA}
)
_NOT_STORED: Final = re.compile(
    r"""(^|[-_.])(
        authorization | auth | cookie | set-cookie | bearer | jwt | credentials?
      | tokens? | secrets? | passwords? | passwd | api[-_.]?keys? | access[-_.]?keys?
      | private[-_.]?keys? | session | sessionid | signature
    )([-_.]|$)
    | ^x-goog-(?!request-params$)""",
    re.VERBOSE,
)
_ATTEMPTS: Final = re.compile(r"[0-9]{1,4}\Z")
_SECRET_VALUE: Final = re.compile(
    r"\s*(bearer|basic|digest|negotiate)\s", re.IGNORECASE
)


class Asked:
    """What a caller asked of the sidecar."""

    __slots__ = ("key", "letter", "passed", "previous", "token", "upstream")

    def __init__(self) -> None:
        self.upstream: str | None = None
        """From `outrigger-upstream`; the last, so that a sender may append it."""
        self.letter: str | None = None
        """From `outrigger-letter`."""
        self.token = ""
        """From `outrigger-token`; the last."""
        self.key: str | None = None
        """The caller's own `idempotency-key`; the first, if it gave several."""
        self.previous = 0
        """How often the caller's gRPC library made this call before, by itself."""
        self.passed: Metadata = ()
        """What goes on to the upstream."""


def asked_of(metadata: Metadata) -> Asked | None:
    """Return what the caller asked; None if nothing, as nearly always."""
    for key, _ in metadata:
        if key in _SINGLE or key.startswith(names.OWN_METADATA_PREFIX):
            return _read(metadata)
    return None


def without_credentials(metadata: Metadata) -> Trailers:
    """Return what may be stored on disk.

    It errs on the side of removing: a name that looks like a secret's, or a value
    that begins like an Authorization header, is left out. Delivery adds credentials
    from the upstream's configuration.
    """
    return tuple(pair for pair in metadata if not is_secret(*pair))


def storable(metadata: Metadata) -> Trailers:
    """Return what of an agent's metadata may be stored: neither ours nor secret."""
    ours = names.OWN_METADATA_PREFIX
    return without_credentials(
        [pair for pair in metadata if not pair[0].startswith(ours)]
    )


def is_secret(key: str, value: str | bytes) -> bool:
    """Return whether an entry looks like a credential, by its key or its value."""
    if _NOT_STORED.search(key):
        return True
    return isinstance(value, str) and _SECRET_VALUE.match(value) is not None


def _read(metadata: Metadata) -> Asked:
    asked = Asked()
    passed: list[tuple[str, str | bytes]] = []
    for pair in metadata:
        key, value = pair
        if key == names.IDEMPOTENCY_KEY_METADATA:
            asked.key = asked.key or str(value)
            # A stored letter has its key already and whoever sends it may add the
            # same again; a callee that reads one value must not see "k, k".
            if pair in passed:
                continue
        elif _is_ours(asked, key, value):
            continue
        passed.append(pair)
    asked.passed = tuple(passed)
    return asked


def _count(value: str | bytes) -> int:
    """Return a count of attempts; what is no number is taken for one."""
    text = str(value)
    return int(text) if _ATTEMPTS.match(text) else 1


def _is_ours(asked: Asked, key: str, value: str | bytes) -> bool:
    """Note what is meant for us; return whether it stays here."""
    if key == names.UPSTREAM_METADATA:
        asked.upstream = str(value)
    elif key == names.LETTER_METADATA:
        asked.letter = str(value).lower()
    elif key == names.PREVIOUS_ATTEMPTS_METADATA:
        asked.previous = _count(value)
    elif key == names.TOKEN_METADATA:
        asked.token = str(value)
    else:
        return key.startswith(names.OWN_METADATA_PREFIX)
    return True
