"""The plot of a run: six panels, one colour per party."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from bench.callpath.loads import ALONE, CROWDED
from bench.callpath.parties import BARE, BARE_UNARY, DIRECT, ENVOY, GUARDED, OURS, PLAIN
from bench.callpath.record import Record
from bench.callpath.rows import Row

_COLOURS: Final = {
    DIRECT: "#b8b8b8",
    ENVOY: "#7b5ea7",
    BARE: "#8fb8de",
    BARE_UNARY: "#c9def2",
    OURS: "#d1495b",
    PLAIN: "#e8d9a8",
    GUARDED: "#e0a030",
}
_GROUP: Final = 0.86
_SMALLEST: Final = 1e-3


def draw(record: Record, path: Path) -> None:
    """Draw a record into a PNG file."""
    import matplotlib as mpl  # noqa: PLC0415 - slow to load, and only here

    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415 - after the choice of backend

    figure, axes = plt.subplots(2, 3, figsize=(17, 9.5), constrained_layout=True)
    for panel, (title, read, in_flight, unit) in zip(axes.flat, _PANELS, strict=False):
        _bars(panel, [row for row in record.rows if _is_at(row, in_flight)], read)
        panel.set_title(f"{title}, {in_flight} in flight")
        panel.set_ylabel(unit)
        panel.set_yscale("log")
    _memory(axes.flat[5], record)
    found = _legend(axes.flat)
    names = [name for name in _COLOURS if name in found]
    handles = [found[name] for name in names]
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    title = f"The call path, {record.date}: {record.machine}"
    figure.suptitle(
        f"{title}\n(no bar: nothing added, or not in its line)", fontsize=11
    )
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _cpu(row: Row) -> float | None:
    return row.cpu_us


def _added_p50(row: Row) -> float | None:
    return None if row.added_p50_us is None else row.added_p50_us / 1000


def _added_p99(row: Row) -> float | None:
    return None if row.added_p99_us is None else row.added_p99_us / 1000


def _rate(row: Row) -> float | None:
    return row.calls_per_s


_PANELS: Final = (
    ("CPU per call (less is better)", _cpu, ALONE, "us"),
    ("CPU per call (less is better)", _cpu, CROWDED, "us"),
    ("Calls a second (more is better)", _rate, CROWDED, "1/s"),
    ("Added p50 (less is better)", _added_p50, ALONE, "ms"),
    ("Added p99 (less is better)", _added_p99, ALONE, "ms"),
)


def _is_at(row: Row, in_flight: int) -> bool:
    return row.load.endswith(f", {in_flight} in flight")


def _bars(
    panel: Any,  # noqa: ANN401 - ships no types
    rows: Sequence[Row],
    read: Callable[[Row], float | None],
) -> None:
    """Draw a group of bars per load; what is not above zero has no bar."""
    loads = list(dict.fromkeys(row.load for row in rows))
    parties = [name for name in _COLOURS if any(row.party == name for row in rows)]
    shown = [name for name in parties if any(read(r) for r in rows if r.party == name)]
    width = _GROUP / max(1, len(shown))
    for place, name in enumerate(shown):
        mine = {row.load: read(row) for row in rows if row.party == name}
        heights = [max(mine.get(load) or 0.0, 0.0) for load in loads]
        spots = [
            at + (place - (len(shown) - 1) / 2) * width for at in range(len(loads))
        ]
        bars = panel.bar(spots, heights, width, label=name, color=_COLOURS[name])
        labels = [_short(height) for height in heights]
        panel.bar_label(bars, labels, fontsize=6.5, rotation=90, padding=2)
    panel.set_xticks(range(len(loads)), [_shape(load) for load in loads], fontsize=8)
    panel.margins(y=0.22)


def _memory(panel: Any, record: Record) -> None:  # noqa: ANN401 - ships no types
    for place, one in enumerate(record.memory):
        colour = _COLOURS[one.party]
        bars = panel.bar([place], [one.pss_mib], _GROUP, label=one.party, color=colour)
        panel.bar_label(bars, [f"{one.pss_mib:.1f}"], fontsize=8)
    names = [_wrapped(one.party) for one in record.memory]
    panel.set_xticks(range(len(names)), names, fontsize=7)
    panel.set_title("Memory (less is better)")
    panel.set_ylabel("PSS, MiB")


def _legend(panels: Any) -> dict[str, Any]:  # noqa: ANN401 - ships no types
    found: dict[str, Any] = {}
    for panel in panels:
        for handle, name in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    return found


def _short(value: float) -> str:
    if value < _SMALLEST:
        return ""
    return f"{value:.0f}" if value >= 99.5 else f"{value:.2g}"


def _shape(load: str) -> str:
    return _wrapped(load.partition(",")[0])


def _wrapped(words: str) -> str:
    return (
        words.replace(" of ", "\nof ")
        .replace(", ", ",\n")
        .replace(" 64 KiB", "\n64 KiB")
    )
