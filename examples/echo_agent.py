"""A stateful agent in a dozen lines: it counts, sleeps, and goes on counting.

outrigger sidecar --agent-id echo -- python examples/echo_agent.py
"""

from outrigger.client import attach

lines: list[str] = []


def restore(state: bytes) -> None:
    """Hold what `save` gave."""
    lines[:] = state.decode().splitlines()


with attach(lambda: "\n".join(lines).encode(), restore) as agent:
    agent.serving()
    while not agent.wait_until_stopped(timeout_s=1.0):
        with agent.working():
            lines.append(f"line {len(lines) + 1}")
            print(lines[-1], flush=True)
