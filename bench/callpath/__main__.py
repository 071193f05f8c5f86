"""`make bench-call`: every way to a callee, side by side in one run."""

import argparse
import sys
from pathlib import Path

from bench.callpath.compiled import Missing
from bench.callpath.loads import FULL, LOADS, QUICK
from bench.callpath.page import markdown
from bench.callpath.plot import draw
from bench.callpath.record import Record
from bench.callpath.run import measure
from bench.figures import RESULTS


def main() -> int:
    """Measure and write the results; exit 1 if calls failed, 3 if Go is missing."""
    parser = argparse.ArgumentParser(prog="python -m bench.callpath")
    parser.add_argument("--quick", action="store_true", help="a third of the time")
    parser.add_argument("--into", type=Path, default=RESULTS, help="a folder")
    given = parser.parse_args()
    effort = QUICK if given.quick else FULL
    command = "python -m bench.callpath --quick" if given.quick else "make bench-call"
    try:
        record = measure(LOADS, effort, command, warm=LOADS)
    except Missing as missing:
        print(missing, file=sys.stderr)
        return 3
    keep(record, given.into)
    print("\n".join(record.failures), file=sys.stderr)
    return int(bool(record.failures))


def keep(record: Record, folder: Path) -> None:
    """Write a record as JSON, page and plot."""
    folder.mkdir(exist_ok=True)
    (folder / "call-path.json").write_text(record.json())
    page = markdown(record)
    (folder / "call-path.md").write_text(page)
    draw(record, folder / "call-path.png")
    print(page)


if __name__ == "__main__":
    raise SystemExit(main())
