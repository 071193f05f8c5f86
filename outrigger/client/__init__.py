"""The agent's side of the sidecar.

    agent = attach(save, restore)
    agent.serving()
    with agent.working():
        ...

An agent that is not written in Python needs none of this: `examples/` shows the
same with nothing but the generated stubs.
"""

from outrigger.client.agent import Agent, Options, attach
from outrigger.client.errors import error_of, letter_id_of
from outrigger.client.life import NotNow

__all__ = ["Agent", "NotNow", "Options", "attach", "error_of", "letter_id_of"]
