"""`outrigger letters`: calls that failed for good, and what becomes of them."""

import argparse
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from outrigger.cli import cells, exits
from outrigger.cli.audit import status_name
from outrigger.cli.flags import (
    SIDECAR,
    Call,
    Verbs,
    add_dry_run,
    add_limit,
    add_reason,
    flag_type,
)
from outrigger.cli.fleet import request_id
from outrigger.cli.letter_file import LetterWriter, letters_in
from outrigger.cli.new_file import new_file
from outrigger.cli.output import Column
from outrigger.cli.terminal import Terminal
from outrigger.core import values
from outrigger.core.errors import Corrupt, Invalid
from outrigger.core.ids import check_method, check_upstream_name
from outrigger.v1.letter_pb2 import Letter
from outrigger.v1.letter_service_pb2 import (
    DiscardLettersRequest,
    ExportLettersRequest,
    GetLedgerRequest,
    GetLetterRequest,
    ImportLettersRequest,
    LetterFilter,
    ListLettersRequest,
    RedriveLettersRequest,
)
from outrigger.v1.letter_service_pb2_grpc import LetterServiceStub

_STATES: Final = {
    cells.word(Letter.State.Name, number): number
    for number in Letter.State.values()
    if number != Letter.STATE_UNSPECIFIED
}
_SHOWN_BYTES: Final = 64


def _state(letter: Letter) -> str:
    return cells.word(Letter.State.Name, letter.state)


def _last_status(letter: Letter) -> str:
    if not letter.last_status_code:
        return cells.NONE
    return status_name(letter.last_status_code)


def _request(letter: Letter) -> str:
    more = "..." if len(letter.request) > _SHOWN_BYTES else ""
    return f"{letter.request[:_SHOWN_BYTES].hex(' ', 4)}{more}" or cells.NONE


_LIST: Final = (
    Column("LETTER", lambda m: cells.words(m.letter_id)),
    Column("STATE", _state),
    Column("UPSTREAM", lambda m: cells.words(m.upstream)),
    Column("METHOD", lambda m: cells.words(m.method)),
    Column("ATTEMPTS", lambda m: str(m.attempt_count), right=True),
    Column("ACCEPTED", lambda m: cells.moment(m, "accept_time")),
    Column("NEXT", lambda m: cells.moment(m, "next_attempt_time")),
    Column("LAST", _last_status),
    Column("REASON", lambda m: cells.words(m.reason)),
)
_ONE: Final = (
    Column("letter", lambda m: cells.words(m.letter_id)),
    Column("agent", lambda m: cells.words(m.agent_id)),
    Column("state", _state),
    Column("reason", lambda m: cells.words(m.reason)),
    Column("upstream", lambda m: cells.words(m.upstream)),
    Column("method", lambda m: cells.words(m.method)),
    Column("idempotency key", lambda m: cells.words(m.idempotency_key)),
    Column("request size", lambda m: cells.size(m.request_size_bytes)),
    Column("request digest", lambda m: cells.digest(m.request_digest)),
    Column("request", _request),
    Column("attempts", lambda m: str(m.attempt_count)),
    Column("redrives", lambda m: str(m.redrive_count)),
    Column("accepted", lambda m: cells.moment(m, "accept_time")),
    Column("next attempt", lambda m: cells.moment(m, "next_attempt_time")),
    Column("ended", lambda m: cells.moment(m, "end_time")),
    Column("expires", lambda m: cells.moment(m, "expire_time")),
    Column("last status", _last_status),
    Column("last message", lambda m: cells.words(m.last_status_message)),
)
_METADATA: Final = (
    Column("METADATA", lambda e: cells.words(e.key)),
    Column("VALUE", lambda e: cells.words(e.value.decode("ascii", "backslashreplace"))),
)
_ATTEMPTS: Final = (
    Column("ATTEMPT ENDED", lambda a: cells.moment(a, "end_time")),
    Column("STATUS", lambda a: status_name(a.status_code)),
    Column("MESSAGE", lambda a: cells.words(a.status_message)),
)
_LEDGER: Final = (
    Column("accepted", lambda n: str(n.accepted_count)),
    Column("delivered", lambda n: str(n.delivered_count)),
    Column("parked", lambda n: str(n.parked_count)),
    Column("expired", lambda n: str(n.expired_count)),
    Column("discarded", lambda n: str(n.discarded_count)),
    Column("live", lambda n: str(n.live_count)),
    Column("lost", lambda n: str(n.lost_count)),
    Column("handed over", lambda n: str(n.handed_over_count)),
)
_REDRIVEN: Final = (Column("redriven", lambda n: str(n.redriven_count)),)
_DISCARDED: Final = (Column("discarded", lambda n: str(n.discarded_count)),)
_IMPORTED: Final = (
    Column("imported", lambda n: str(n.imported_count)),
    Column("known already", lambda n: str(n.known_count)),
)


def run(argv: Sequence[str], terminal: Terminal) -> int:
    """Run one verb on letters."""
    verbs = Verbs("letters", "Letters of one sidecar.", SIDECAR)
    listing = verbs.add("list", _list, "list letters, oldest first")
    _add_filter(listing)
    add_limit(listing)
    verbs.add("show", _show, "show one letter").add_argument("letter_id", metavar="ID")
    redrive = verbs.add("redrive", _redrive, "put ended or held letters back")
    _add_filter(redrive, everything="every parked, expired and held letter")
    add_dry_run(redrive)
    discard = verbs.add("discard", _discard, "end letters for good")
    _add_filter(discard, everything="every parked, expired and held letter")
    add_reason(discard, required=True)
    add_dry_run(discard)
    export = verbs.add("export", _export, "write whole letters as JSON lines")
    _add_filter(export)
    export.add_argument(
        "--file",
        type=flag_type(values.path),
        metavar="FILE",
        help="where to, instead of stdout",
    )
    export.add_argument("--force", action="store_true", help="replace the file")
    verbs.add("import", _import, "take exported letters").add_argument(
        "file", type=flag_type(values.path), metavar="FILE"
    )
    verbs.add("ledger", _ledger, "say where all letters ever accepted are now")
    return verbs.run(argv, terminal)


def _add_filter(parser: argparse.ArgumentParser, everything: str = "") -> None:
    group = parser.add_argument_group("which letters; all given must match")
    group.add_argument(
        "--state",
        action="append",
        choices=tuple(_STATES),
        default=[],
        help="in this state; may be repeated",
    )
    group.add_argument("--upstream", type=flag_type(check_upstream_name))
    group.add_argument("--method", type=flag_type(check_method))
    group.add_argument(
        "--id",
        action="append",
        default=[],
        type=flag_type(values.text),
        help="this letter; may be repeated",
    )
    if everything:
        group.add_argument("--all", action="store_true", help=everything)


def _filter(flags: argparse.Namespace) -> LetterFilter:
    return LetterFilter(
        states=[_STATES[word] for word in flags.state],
        upstream=flags.upstream or "",
        method=flags.method or "",
        letter_ids=flags.id,
    )


def _selection(flags: argparse.Namespace) -> LetterFilter:
    """Return the filter of a verb that changes letters.

    Raises:
        Invalid: NO_SELECTION, when nothing or two different things are meant.
    """
    selected = _filter(flags)
    if (selected != LetterFilter()) == flags.all:
        raise Invalid(
            "NO_SELECTION",
            "say which letters: give either --state, --upstream, --method or --id, or"
            " --all",
        )
    return selected


async def _list(call: Call) -> int:
    stub = LetterServiceStub(call.session.channel)
    request = ListLettersRequest(filter=_filter(call.flags))
    letters = call.session.pages(stub.ListLetters, request, "letters", call.flags.limit)
    await call.printer.rows(letters, _LIST)
    return exits.OK


async def _show(call: Call) -> int:
    stub = LetterServiceStub(call.session.channel)
    request = GetLetterRequest(letter_id=call.flags.letter_id)
    letter = (await call.session.call(stub.GetLetter, request)).letter
    call.printer.one(letter, _ONE)
    if call.printer.for_people and letter.metadata:
        call.printer.table(_METADATA, letter.metadata)
    if call.printer.for_people and letter.attempts:
        call.printer.table(_ATTEMPTS, letter.attempts)
    return exits.OK


async def _redrive(call: Call) -> int:
    stub = LetterServiceStub(call.session.channel)
    request = RedriveLettersRequest(
        filter=_selection(call.flags),
        all=call.flags.all,
        validate_only=call.flags.dry_run,
        request_id=request_id(),
    )
    answer = await call.session.call(stub.RedriveLetters, request, long=True)
    call.printer.one(answer, _REDRIVEN)
    _say_dry(call)
    return exits.OK


async def _discard(call: Call) -> int:
    stub = LetterServiceStub(call.session.channel)
    request = DiscardLettersRequest(
        filter=_selection(call.flags),
        all=call.flags.all,
        reason=call.flags.reason,
        validate_only=call.flags.dry_run,
        request_id=request_id(),
    )
    answer = await call.session.call(stub.DiscardLetters, request, long=True)
    call.printer.one(answer, _DISCARDED)
    _say_dry(call)
    return exits.OK


def _say_dry(call: Call) -> None:
    if call.flags.dry_run:
        call.printer.say("nothing was changed: this was a dry run")


async def _export(call: Call) -> int:
    path: Path | None = call.flags.file
    if path is None:
        await _write_letters(call, call.terminal.stdout.write)
        call.terminal.stdout.flush()
        return exits.OK
    with new_file(path, force=call.flags.force) as file:
        count = await _write_letters(call, lambda line: file.write(line.encode()))
    call.printer.say(f"{count} letters exported to {path}")
    return exits.OK


async def _write_letters(call: Call, write: Callable[[str], object]) -> int:
    """Write an export; one that fails midway has no trailer and proves nothing."""
    stub = LetterServiceStub(call.session.channel)
    request = ExportLettersRequest(filter=_filter(call.flags))
    writer = LetterWriter()
    write(writer.header())
    async for answer in call.session.receive(stub.ExportLetters, request):
        write(writer.letter(answer.letter))
    write(writer.trailer())
    return writer.count


async def _import(call: Call) -> int:
    path: Path = call.flags.file
    # All of it is verified before the first letter is sent.
    deque(letters_in(path), maxlen=0)
    stub = LetterServiceStub(call.session.channel)
    answer = await call.session.send(stub.ImportLetters, _requests(path))
    call.printer.one(answer, _IMPORTED)
    return exits.OK


def _requests(path: Path) -> Iterator[ImportLettersRequest]:
    for letter in letters_in(path):
        yield ImportLettersRequest(letter=letter)


async def _ledger(call: Call) -> int:
    stub = LetterServiceStub(call.session.channel)
    ledger = (await call.session.call(stub.GetLedger, GetLedgerRequest())).ledger
    call.printer.one(ledger, _LEDGER)
    for reason, count in sorted(ledger.refused_counts.items()):
        call.printer.say(f"refused since start: {cells.words(reason)} {count}")
    if ledger.lost_count:
        raise Corrupt(
            "LETTERS_LOST",
            f"{ledger.lost_count} letters are accounted for nowhere: that is a defect;"
            " keep the state directory and report it",
        )
    return exits.OK
