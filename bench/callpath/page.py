"""The page of a run: what was measured, how, and every number in tables."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from bench.callpath.guard_cost import BOUND_US
from bench.callpath.parties import BARE, BARE_UNARY, ENVOY, GUARDED, OURS
from bench.callpath.record import Record
from bench.callpath.rows import Row

CPU_BOUND: Final = 1.3
"""What a call may cost over the bare pass-through; see the ratios."""

_NOTES: Final = f"""\
- Every number is the median over interleaved rounds: within a round each party does
  the same load in turn. *Added* is over the direct call of the same round.
- What is measured has one core, always the same; caller and callee have the others.
- CPU is user and system time of the process in between, all its threads, per call; a
  stream of 100 messages and 100 round trips each are one call.
- `>=` before calls a second: the party was idle in part, so the caller, the callee or
  the machine was the limit, and it can do more.
- *{BARE}* takes any method of any arity as we do, with no policy and no early response
  headers. *{BARE_UNARY}* is the least a relay in grpc.aio can cost; it can do nothing
  else.
- *{GUARDED}* is a synchronous client; its numbers are over the same client without the
  two. pybreaker holds its lock during the call, so calls to one method take turns: see
  64 in flight. A negative number says that taking turns spared the threads more than
  guarding cost.
- {ENVOY} has one worker, our retry, and its outlier detection set to our limits.
"""


def markdown(record: Record) -> str:
    """Return the page."""
    lines = [
        "# The call path",
        "",
        f"Command: `{record.command}`, {record.date}",
        "",
        f"Machine: {record.machine}",
        "",
        "With: " + ", ".join(f"{key} {one}" for key, one in record.versions.items()),
        "",
        *(f"Not measured: {why}\n" for why in record.missing),
        *(f"Failures: {what}\n" for what in record.failures),
        "![CPU, latency, calls a second and memory of every party](call-path.png)",
        "",
        _NOTES,
        *_bounds(record),
        "",
        *_loads(record.rows),
        *_memory(record),
        "",
        *_ratios(record),
    ]
    return "\n".join(lines) + "\n"


def _bounds(record: Record) -> Iterator[str]:
    yield from _head("bound", "is", "holds")
    name = f"CPU, us / {BARE}"
    worst = [one for key, one in record.ratios.items() if key.endswith(name)]
    for ratio in worst:
        holds = _yes(ratio.value <= CPU_BOUND)
        yield _line(f"{ratio.name} <= {CPU_BOUND}", f"{ratio.value:.2f}", holds)
    guard = f"begin + ended of a healthy call < {BOUND_US:g} us"
    yield _line(guard, f"{record.guard_us:.2f} us", _yes(record.guard_us < BOUND_US))


def _loads(rows: Sequence[Row]) -> Iterator[str]:
    for load in dict.fromkeys(row.load for row in rows):
        yield from (f"## {load}", "")
        yield from _head(
            "party", "p50", "p99", "added p50", "added p99", "calls a second", "CPU"
        )
        for row in rows:
            if row.load == load:
                yield _line(*_cells(row))
        yield ""


def _cells(row: Row) -> Iterable[str]:
    return (
        f"**{row.party}**" if row.party == OURS else row.party,
        _time(row.p50_us),
        _time(row.p99_us),
        _time(row.added_p50_us),
        _time(row.added_p99_us),
        f"{'>= ' if row.is_floor else ''}{row.calls_per_s:.4g}",
        "" if row.cpu_us is None else f"{row.cpu_us:.4g} us",
    )


def _memory(record: Record) -> Iterator[str]:
    yield from ("## Memory, after one turn of every load", "")
    yield from _head("party", "PSS", "RSS")
    for one in record.memory:
        yield _line(one.party, f"{one.pss_mib:.1f} MiB", f"{one.rss_mib:.1f} MiB")


def _ratios(record: Record) -> Iterator[str]:
    yield from ("## Ratios that `make bench-compare` holds", "")
    yield from _head("ratio", "is", "worse when")
    for ratio in record.ratios.values():
        worse = "higher" if ratio.more_is_worse else "lower"
        yield _line(ratio.name, f"{ratio.value:.3g}", worse)


def _head(*cells: str) -> Iterator[str]:
    yield _line(*cells)
    yield "|" + "---|" * len(cells)


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _time(us: float | None) -> str:
    return "" if us is None else f"{us / 1000:.3g} ms"


def _yes(holds: bool) -> str:  # noqa: FBT001 - of its name
    return "yes" if holds else "NO"
