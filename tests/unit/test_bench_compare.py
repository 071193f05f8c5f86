"""Comparing the ratios of a bench with the committed ones."""

import json

import pytest

from bench import compare as comparing
from bench.callpath.loads import FULL, LOADS
from bench.callpath.ratios import Ratio
from bench.callpath.record import committed_ratios
from bench.compare import Verdict, compare, doubtful, settled

CPU = "unary: CPU, us / bare"
RATE = "unary: calls a second, us / bare"
MEMORY = "memory: PSS, us / bare"


def run(**values):
    """The ratios of a run: cpu, rate, memory; those given."""
    kinds = {
        "cpu": (CPU, "unary", True),
        "rate": (RATE, "unary", False),
        "memory": (MEMORY, "", True),
    }
    found = {}
    for key, value in values.items():
        name, load, more_is_worse = kinds[key]
        found[name] = Ratio(name, load, value, more_is_worse)
    return found


def verdict(before, after):
    """The only verdict of comparing two runs."""
    (one,) = compare(before, after)
    return one.verdict


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"cpu": 1.0}, {"cpu": 1.11}, Verdict.WORSE),
        ({"cpu": 1.0}, {"cpu": 1.09}, Verdict.HOLDS),
        ({"cpu": 2.0}, {"cpu": 2.22}, Verdict.WORSE),
        ({"cpu": 2.0}, {"cpu": 2.18}, Verdict.HOLDS),
        ({"cpu": 1.3}, {"cpu": 0.5}, Verdict.HOLDS),
        ({"rate": 1.11}, {"rate": 1.0}, Verdict.WORSE),
        ({"rate": 1.09}, {"rate": 1.0}, Verdict.HOLDS),
        ({"rate": 0.5}, {"rate": 1.3}, Verdict.HOLDS),
    ],
)
def test_a_ratio_may_be_a_tenth_worse_and_no_more(before, after, expected):
    """11 % worse fails, 9 % passes, better passes, whichever way is worse."""
    assert verdict(run(**before), run(**after)) is expected


def test_how_much_worse_is_told_as_a_share_of_the_committed_one():
    """A ratio of 3 where 2 is committed is half as much again."""
    (one,) = compare(run(cpu=2.0), run(cpu=3.0))

    assert one.worse_by == pytest.approx(0.5)
    assert (one.committed, one.now) == (2.0, 3.0)


def test_a_committed_ratio_that_this_run_lacks_fails():
    """Nobody passes by not measuring."""
    (one,) = compare(run(cpu=1.0), {})

    assert one.verdict is Verdict.MISSING
    assert one.fails


def test_a_ratio_that_is_not_committed_yet_passes():
    """A new load can be added before its numbers are."""
    _, one = compare(run(cpu=1.0), run(cpu=1.0, rate=0.1))

    assert (one.name, one.verdict) == (RATE, Verdict.NEW)
    assert not one.fails


def test_only_the_loads_that_look_worse_are_measured_again():
    """What holds is not measured twice, and memory needs no load at all."""
    before = run(cpu=1.0, memory=1.0)

    holds = run(cpu=1.0, memory=1.0)
    assert doubtful(compare(before, holds), holds) is None
    worse = run(cpu=1.2, memory=1.2)
    assert doubtful(compare(before, worse), worse) == ["unary"]
    memory = run(cpu=1.0, memory=1.2)
    assert doubtful(compare(before, memory), memory) == []


def test_the_middle_of_the_runs_decides():
    """One lucky run does not hide a loss, one unlucky run is none."""
    assert settled([run(cpu=1.3), run(cpu=1.0), run(cpu=1.2)])[CPU].value == 1.2
    assert settled([run(cpu=1.3), run(cpu=1.0), run(cpu=1.05)])[CPU].value == 1.05


def test_a_ratio_measured_once_stands_as_it_is():
    """A repeat of other loads takes nothing away."""
    both = settled([run(cpu=1.3, rate=0.7), run(cpu=1.1)])

    assert both[RATE] == Ratio(RATE, "unary", 0.7, more_is_worse=False)
    assert both[CPU].value == pytest.approx(1.2)


class Measuring:
    """Stands in for the bench: answers with one prepared run after the other."""

    def __init__(self, *runs):
        self.runs = list(runs)
        self.asked = []

    def __call__(self, loads, effort, command, *, warm):
        self.asked.append([load.name for load in loads])
        self.ratios = self.runs.pop(0)
        return self


def ratio_of(value):
    """A run with one ratio, of the first load."""
    load = LOADS[0].name
    return {CPU: Ratio(CPU, load, value)}


@pytest.mark.parametrize(
    ("values", "times"),
    [((1.0,), 1), ((1.2, 0.9), 2), ((1.3, 1.2, 1.0), 3), ((1.3, 1.25, 1.2), 3)],
)
def test_what_looks_worse_is_measured_up_to_twice_more(monkeypatch, values, times):
    """A run that holds ends it; after three the middle stands."""
    measuring = Measuring(*(ratio_of(value) for value in values))
    monkeypatch.setattr(comparing, "measure", measuring)

    found = comparing.measured(ratio_of(1.0), FULL)

    assert len(measuring.asked) == times
    assert measuring.asked[0] == [load.name for load in LOADS]
    assert all(again == [LOADS[0].name] for again in measuring.asked[1:])
    assert found[CPU].value == pytest.approx(sorted(values)[len(values) // 2], abs=0.2)


def written(folder, value):
    """A kept record with one ratio."""
    path = folder / "call-path.json"
    ratio = {"value": value, "more_is_worse": True}
    path.write_text(json.dumps({"ratios": {CPU: ratio}}))
    return path


@pytest.mark.parametrize(("now", "code"), [(1.0, 0), (1.11, 1)])
def test_the_command_exits_1_when_a_ratio_got_worse(
    monkeypatch, capsys, tmp_path, now, code
):
    """It prints the table and leaves the verdict to the exit code."""
    path = written(tmp_path, 1.0)
    monkeypatch.setattr("sys.argv", ["bench.compare", "--with", str(path)])
    monkeypatch.setattr(comparing, "measure", Measuring(*[ratio_of(now)] * 3))

    assert comparing.main() == code
    assert ("WORSE" if code else "holds") in capsys.readouterr().out


def test_without_go_it_says_what_is_missing_and_exits_3(monkeypatch, capsys, tmp_path):
    """One line, and not the exit code of a ratio that got worse."""
    path = written(tmp_path, 1.0)
    monkeypatch.setattr("sys.argv", ["bench.compare", "--with", str(path)])
    monkeypatch.setenv("PATH", str(tmp_path))

    assert comparing.main() == 3
    said = capsys.readouterr().err
    assert said.startswith("Go is missing")
    assert said.count("\n") == 1


def test_kept_ratios_are_read_with_the_way_they_get_worse(tmp_path):
    """A record is compared as it was written."""
    assert committed_ratios(written(tmp_path, 1.5)) == {CPU: Ratio(CPU, "", 1.5)}


def test_without_a_committed_record_it_says_how_to_make_one(
    monkeypatch, capsys, tmp_path
):
    """Nothing is measured for nothing."""
    gone = tmp_path / "call-path.json"
    monkeypatch.setattr("sys.argv", ["bench.compare", "--with", str(gone)])

    assert comparing.main() == 3
    assert "`make bench-call` makes it" in capsys.readouterr().err
