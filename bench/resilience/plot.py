"""The plot of a run: what an ill callee is sent, and what callers get, by second."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from bench.resilience.parties import ENVOY, NAIVE, OURS
from bench.resilience.storms import Ill

_COLOURS: Final = {OURS: "#d1495b", ENVOY: "#7b5ea7", NAIVE: "#e0a030"}


def draw(found: Sequence[Ill], path: Path) -> bool:
    """Draw into a PNG file; return False where there is no matplotlib."""
    try:
        import matplotlib as mpl  # noqa: PLC0415 - optional, and slow to load
    except ImportError:
        return False
    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415 - after the choice of backend

    figure, (sent, got) = plt.subplots(2, 1, sharex=True, figsize=(11, 7))
    for ill in found:
        style = {"color": _COLOURS[ill.name], "label": ill.name}
        sent.plot(*by_second(ill.arrivals, ill.began), **style)
        good = (one.begun for one in ill.calls if one.is_good)
        got.plot(*by_second(good, ill.began), **style)
    for panel, title in (
        (sent, "attempts at the callee per second"),
        (got, "calls answered per second"),
    ):
        panel.axvspan(0, found[0].recovered - found[0].began, color="#eeeeee")
        panel.set_ylabel(title)
        panel.set_ylim(bottom=0)
    got.set_xlabel("seconds since the callee answers one call in ten (grey)")
    sent.legend()
    figure.savefig(path, dpi=90, bbox_inches="tight")
    plt.close(figure)
    return True


def by_second(times: Iterable[float], began: float) -> tuple[list[int], list[int]]:
    """Return whole seconds since `began` and how many times fall into each."""
    counted = Counter(int(when - began) for when in times if when >= began)
    seconds = list(range(max(counted, default=-1)))  # the last one is not whole
    return seconds, [counted[second] for second in seconds]
