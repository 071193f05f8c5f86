"""An agent that changes its state, says late where it serves, and tears its stream.

waking_agent.py SEED

Every life restores, has one of a few accidents, serves, appends to its state, and
prints what it restored and saved. The accident follows from the seed and the state.
"""

import random
import socket
import sys
import threading
import time

from outrigger.client import attach

ACCIDENTS = ("none", "none", "break before the proof", "break", "breaks", "late")

accidents: list[str] = []
chance = random.Random(sys.argv[1])
lines: list[str] = []
is_attached = threading.Event()


def save() -> bytes:
    print(f"saved {len(lines)}", flush=True)
    return "\n".join(lines).encode()


def restore(state: bytes) -> None:
    lines[:] = state.decode().splitlines()
    assert lines == [f"line {number}" for number in range(len(lines))]
    print(f"restored {len(lines)}", flush=True)
    chance.seed(f"{sys.argv[1]} {len(lines)}")
    accidents[:] = [chance.choice(ACCIDENTS)]
    if accidents == ["break before the proof"]:
        tear()


def tear() -> None:
    """Break the stream as the network would."""
    is_attached.wait()
    agent._life._link._cancel()


with socket.create_server(("127.0.0.1", 0)) as listener:
    app = f"127.0.0.1:{listener.getsockname()[1]}"
    agent = attach(save, restore)
    is_attached.set()
    with agent:
        agent.wait_until_restored()
        if accidents in (["break"], ["breaks"]):
            tear()
        if accidents == ["late"]:
            time.sleep(chance.random() / 20)
        agent.serving(app)
        if accidents == ["breaks"]:
            tear()
        for _ in range(chance.randrange(1, 4)):
            with agent.working():
                lines.append(f"line {len(lines)}")
        agent.wait_until_stopped()
