"""What the demo shows: a live table on a terminal, plain lines elsewhere."""

from collections.abc import Iterable, Sequence
from typing import Final, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from outrigger.core.clock import Clock
from outrigger.demo.verdict import AgentFacts, Claim, Facts

_MIB: Final = 1024 * 1024


class Screen:
    """Events as lines, agents as a table that follows them."""

    def __init__(self, console: Console, clock: Clock) -> None:
        self._console = console
        self._clock = clock
        self._began = clock.monotonic()
        # Without a terminal a table that redraws itself is noise in a log.
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._moves = console.is_terminal

    def __enter__(self) -> Self:
        if self._moves:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._moves:
            self._live.stop()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the demo began."""
        return self._clock.monotonic() - self._began

    def say(self, text: str) -> None:
        """Tell an event."""
        line = f"{self.elapsed_s:5.1f} s  {text}"
        self._console.print(line, highlight=False, soft_wrap=True)

    def show(self, rows: Iterable[Sequence[str]]) -> None:
        """Show how the agents are now."""
        if self._moves:
            self._live.update(Group("", _now_table(rows)), refresh=True)

    def summarize(self, facts: Facts, claims: Sequence[Claim]) -> None:
        """Print the counts and the verdicts."""
        self._console.print()
        self._console.print(_summary_table(facts.agents))
        for claim in claims:
            mark = "[green]ok    [/]" if claim.holds else "[red]FAILED[/]"
            detail = f" ({claim.detail})" if claim.detail else ""
            line = f"  {mark}  {claim.text}{detail}"
            self._console.print(line, highlight=False, soft_wrap=True)


def mib(size: int) -> str:
    """Return a size in MiB."""
    return f"{size / _MIB:.1f}"


def _now_table(rows: Iterable[Sequence[str]]) -> Table:
    table = _table("read from the sidecars")
    for name in ("state", "pid", "sent", "retried", "letters", "live", "MiB"):
        table.add_column(name, justify="right")
    table.add_column("circuit")
    for row in rows:
        table.add_row(*row)
    return table


def _summary_table(agents: Sequence[AgentFacts]) -> Table:
    table = _table("summary, read back from the processes")
    for name in (
        "sent", "retried", "buffered", "delivered", "lost", "sleeps", "wakes",
        "wake s", "MiB", "asleep",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for agent in agents:
        table.add_row(agent.name, *_figures(agent))
    table.add_section()
    table.add_row("all", *_figures(_total(agents)))
    return table


def _table(title: str) -> Table:
    # Narrow enough for the 80 columns of a log.
    table = Table(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=0,
        pad_edge=False,
    )
    table.add_column("agent")
    return table


def _figures(agent: AgentFacts) -> tuple[str, ...]:
    counts = (
        agent.sent, agent.retried, agent.buffered, agent.delivered, agent.lost,
        agent.sleeps, agent.wakes,
    )  # fmt: skip
    memory = (mib(agent.awake_bytes), mib(agent.asleep_bytes))
    return (*map(str, counts), f"{agent.wake_s:.2f}", *memory)


def _total(agents: Sequence[AgentFacts]) -> AgentFacts:
    total = AgentFacts("all")
    for name in (
        "sent", "retried", "buffered", "delivered", "lost", "sleeps", "wakes",
        "awake_bytes", "asleep_bytes",
    ):  # fmt: skip
        setattr(total, name, sum(getattr(agent, name) for agent in agents))
    total.wake_s = max((agent.wake_s for agent in agents), default=0.0)
    return total
