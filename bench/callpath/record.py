"""The record of a run: as JSON for `bench.compare`, as a page and a plot for people."""

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc

from bench.callpath import compiled, envoy
from bench.callpath.ratios import Ratio, ratios
from bench.callpath.rounds import Memory
from bench.callpath.rows import Row
from bench.figures import machine


@dataclass(frozen=True, slots=True)
class Record:
    """All that is kept of a run."""

    command: str
    date: str
    machine: str
    versions: dict[str, str]
    missing: tuple[str, ...]
    """Who could not be measured, and why."""
    rows: Sequence[Row]
    memory: Sequence[Memory]
    guard_us: float
    """`begin` and `ended` of a healthy call; see `guard_cost`."""

    @property
    def ratios(self) -> Mapping[str, Ratio]:
        """What `bench.compare` holds against another run's."""
        return ratios(self.rows, self.memory)

    @property
    def failures(self) -> list[str]:
        """Return a line for each party that failed calls."""
        return [
            f"{row.errors} of {row.calls + row.errors} calls failed: {row.load},"
            f" {row.party}: {row.error}"
            for row in self.rows
            if row.errors
        ]

    def json(self) -> str:
        """Return everything, ratios too."""
        kept: dict[str, Any] = asdict(self)
        kept["ratios"] = {
            name: {"value": ratio.value, "more_is_worse": ratio.more_is_worse}
            for name, ratio in self.ratios.items()
        }
        return json.dumps(_rounded(kept), indent=1) + "\n"


def versions() -> dict[str, str]:
    """Return the versions of what was measured with."""
    return {
        "grpcio": grpc.__version__,
        "load generator and callee": compiled.version(),
        "Envoy": envoy.version() or "none",
    }


def today() -> str:
    """Return the date, in UTC."""
    return dt.datetime.now(dt.UTC).date().isoformat()


def described(rest: Mapping[str, Any]) -> Record:
    """Return a record with today's date, this machine and its versions."""
    return Record(date=today(), machine=machine(), versions=versions(), **rest)


def committed_ratios(path: Path) -> dict[str, Ratio]:
    """Return the ratios of a kept record, by name.

    Raises:
        Missing: there is no such record.
    """
    if not path.exists():
        raise compiled.Missing(
            f"{path.name} is missing: `make bench-call` makes it, to be committed"
        )
    kept = json.loads(path.read_text())["ratios"]
    return {
        name: Ratio(name, "", one["value"], one["more_is_worse"])
        for name, one in kept.items()
    }


def _rounded(kept: Any) -> Any:  # noqa: ANN401 - any JSON
    """Keep four digits: more would be noise in every diff."""
    if isinstance(kept, float):
        return float(f"{kept:.4g}")
    if isinstance(kept, dict):
        return {key: _rounded(one) for key, one in kept.items()}
    if isinstance(kept, list | tuple):
        return [_rounded(one) for one in kept]
    return kept
