"""What the call-path bench makes of its turns: rows, ratios, the kept record."""

import json

import pytest

from bench.callpath import __main__ as command
from bench.callpath import compiled
from bench.callpath.driver import Made
from bench.callpath.loads import LOADS
from bench.callpath.page import markdown
from bench.callpath.parties import BARE, DIRECT, ENVOY, GUARDED, OURS, PLAIN
from bench.callpath.ratios import ratios
from bench.callpath.record import Record, committed_ratios
from bench.callpath.rounds import Memory, Turn
from bench.callpath.rows import memory_of, rows

ALONE, CROWDED, OPEN = LOADS[0], LOADS[1], LOADS[-1]


def turn(party, p50_us, *, load=ALONE, cpu_us=None, busy=1.0, errors=0):
    """One party's turn at a load: 100 calls in a tenth of a second."""
    made = Made(100, errors, "broken" if errors else "", 0.1, p50_us, 2 * p50_us)
    return Turn(load, party, made, cpu_us, None if cpu_us is None else busy, 0.5)


def row_of(party, *turns):
    """The only row of a party."""
    (found,) = [row for row in rows(turns) if row.party == party]
    return found


def test_a_row_is_the_median_of_the_rounds():
    """One slow round does not move it."""
    found = row_of(OURS, *(turn(OURS, us, cpu_us=us * 2) for us in (10, 12, 90)))

    assert (found.p50_us, found.p99_us, found.cpu_us) == (12, 24, 24)
    assert (found.calls, found.calls_per_s) == (300, 1000)
    assert found.least_p50_us == 10


def test_what_is_added_is_over_the_direct_call_of_the_same_round():
    """A round in which all are slow adds what the others add."""
    turns = []
    for slow in (0, 50, 0):
        turns += [turn(DIRECT, 10 + slow), turn(OURS, 40 + slow, cpu_us=1)]

    assert row_of(OURS, *turns).added_p50_us == 30
    assert row_of(DIRECT, *turns).added_p50_us is None


def test_a_client_that_guards_itself_is_measured_over_the_same_client():
    """Its calls are Python's; what the breakers add is the difference."""
    turns = [
        turn(DIRECT, 10),
        turn(PLAIN, 100, cpu_us=200),
        turn(GUARDED, 130, cpu_us=240),
    ]

    assert row_of(GUARDED, *turns).added_p50_us == 30
    assert row_of(GUARDED, *turns).cpu_us == 40
    assert row_of(PLAIN, *turns).cpu_us is None


@pytest.mark.parametrize(
    ("load", "busy", "expected"),
    [(CROWDED, 0.5, True), (CROWDED, 1.0, False), (ALONE, 0.5, False)],
)
def test_a_party_that_was_idle_in_part_can_do_more(load, busy, expected):
    """Its calls a second are a floor, if it was to be busy at all."""
    mine = turn(ENVOY, 10, load=load, cpu_us=5, busy=busy)

    assert row_of(ENVOY, mine).is_floor is expected


def test_memory_of_a_guarding_client_is_what_guarding_adds():
    """A client's own memory is not the breakers'."""
    read = [Memory(OURS, 40, 60), Memory(PLAIN, 30, 50), Memory(GUARDED, 34, 55)]

    assert memory_of(read) == [Memory(OURS, 40, 60), Memory(GUARDED, 4, 5)]


def field_of(load):
    """A turn of everybody at a load."""
    return rows(
        [
            turn(DIRECT, 10, load=load),
            turn(ENVOY, 15, load=load, cpu_us=50),
            turn(BARE, 30, load=load, cpu_us=100),
            turn(OURS, 40, load=load, cpu_us=120),
        ]
    )


def values(found):
    """Ratios by name as plain numbers."""
    return {name: one.value for name, one in found.items()}


def test_one_call_at_a_time_is_compared_by_cpu_and_latency():
    """Over the bare pass-through and over the direct call."""
    assert values(ratios(field_of(ALONE), [])) == {
        f"{ALONE.name}: CPU, us / {BARE}": 1.2,
        f"{ALONE.name}: least p50, us / {DIRECT}": 4.0,
    }


def test_latency_is_compared_by_the_least_disturbed_rounds():
    """Whoever was in the way of two rounds of three is no loss of ours."""
    direct = [turn(DIRECT, us) for us in (10, 30, 30)]
    ours = [turn(OURS, us, cpu_us=1) for us in (200, 40, 100)]

    (found,) = ratios(rows([*direct, *ours]), []).values()

    assert found.value == 4


def test_a_crowd_is_compared_by_cpu_and_calls_a_second():
    """Over the bare pass-through and Envoy; fewer calls a second are worse."""
    found = ratios(field_of(CROWDED), [])

    rate = f"{CROWDED.name}: calls a second, us / {BARE}"
    assert values(found) == {
        f"{CROWDED.name}: CPU, us / {BARE}": 1.2,
        f"{CROWDED.name}: CPU, us / {ENVOY}": 2.4,
        rate: 1.0,
    }
    assert [one.name for one in found.values() if not one.more_is_worse] == [rate]


def test_calls_at_a_fixed_rate_are_compared_by_cpu_and_latency():
    """Everybody does as many as are due, so that says nothing."""
    assert values(ratios(field_of(OPEN), [])) == {
        f"{OPEN.name}: CPU, us / {BARE}": 1.2,
        f"{OPEN.name}: least p50, us / {DIRECT}": 4.0,
    }


def test_memory_is_compared_with_envoys():
    """It needs no load of its own."""
    memory = [Memory(ENVOY, 80, 90), Memory(OURS, 40, 50)]

    (found,) = ratios([], memory).values()

    assert (found.value, found.load) == (0.5, "")


def test_a_cpu_time_of_nothing_is_no_ratio():
    """A meter that failed is not a process that costs nothing."""
    turns = [turn(BARE, 30, cpu_us=0), turn(OURS, 40, cpu_us=120)]

    with pytest.raises(ValueError, match="no CPU was measured"):
        ratios(rows(turns), [])


def test_a_party_that_is_missing_takes_its_ratios_with_it():
    """Nothing is made up for it."""
    assert ratios(rows([turn(DIRECT, 10), turn(BARE, 20, cpu_us=5)]), []) == {}


def record_of(*turns):
    """A record of these turns."""
    return Record(
        command="make bench-call",
        date="2026-01-02",
        machine="2 cores",
        versions={"grpcio": "1"},
        missing=("Envoy: not installed",),
        rows=rows(turns),
        memory=[Memory(OURS, 40, 60)],
        guard_us=3.0,
    )


def test_a_record_is_read_back_with_its_ratios(tmp_path):
    """What is committed is what the next run is compared with."""
    record = record_of(turn(BARE, 30, cpu_us=100), turn(OURS, 40, cpu_us=130))
    path = tmp_path / "call-path.json"
    path.write_text(record.json())

    read = committed_ratios(path)

    assert read.keys() == record.ratios.keys()
    assert all(read[name].value == record.ratios[name].value for name in read)
    kept = json.loads(path.read_text())
    assert (kept["date"], kept["machine"]) == ("2026-01-02", "2 cores")


def test_the_page_says_what_was_not_measured_what_failed_and_what_holds():
    """Nothing missing is passed over in silence."""
    page = markdown(
        record_of(turn(BARE, 30, cpu_us=100), turn(OURS, 40, cpu_us=131, errors=2))
    )

    assert "Not measured: Envoy: not installed" in page
    assert f"Failures: 2 of 102 calls failed: {ALONE.name}, {OURS}: broken" in page
    assert f"| {ALONE.name}: CPU, us / {BARE} <= 1.3 | 1.31 | NO |" in page
    assert "healthy call < 5 us | 3.00 us | yes |" in page


def test_without_go_the_bench_says_so_in_one_line_and_exits_3(
    monkeypatch, capsys, tmp_path
):
    """Nothing is started and nothing is written."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["bench.callpath", "--into", str(tmp_path)])

    assert command.main() == 3
    assert capsys.readouterr().err.startswith("Go is missing")
    assert not list(tmp_path.iterdir())


def test_a_go_that_cannot_build_it_is_told_in_one_line(monkeypatch, tmp_path):
    """Its own words are kept, on the same line."""
    go = tmp_path / "go"
    go.write_text("#!/bin/sh\necho too old >&2\necho sorry >&2\nexit 1\n")
    go.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(compiled.Missing, match=r"is missing: too old / sorry$"):
        compiled.build(tmp_path)
