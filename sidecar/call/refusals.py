"""What the guard's outer layers refuse, in words."""

import hmac

from outrigger.core import names
from outrigger.core.errors import TimedOut, Transient, Unauthenticated
from sidecar.call import answers
from sidecar.call.descriptor import Call, Kind
from sidecar.call.metadata import Asked


def check_token(token: str, call: Call, asked: Asked | None) -> None:
    """Let only calls pass that bring the agent's token; letters are our own.

    Raises:
        Unauthenticated: WRONG_TOKEN.
    """
    given = "" if asked is None else asked.token
    if call.kind is Kind.CALL and not hmac.compare_digest(
        given.encode(), token.encode()
    ):
        raise Unauthenticated(
            "WRONG_TOKEN",
            f"this relay asks for the agent's token: send it as {names.TOKEN_METADATA};"
            f" the sidecar gives it to the agent in {names.ENV_TOKEN}",
        )


def too_late(call: Call) -> TimedOut:
    """Return what a call is told whose deadline had passed when it came."""
    return TimedOut(
        "DEADLINE_PASSED",
        f"the deadline of this call to {call.method} had passed when it came; nothing"
        " was sent: give it more time",
    )


def killed(reason: str) -> Transient:
    """Return what a letter on its way is told while an operator stops them."""
    return Transient(
        answers.CALLS_KILLED,
        f"an operator stopped retries and deliveries ({reason}); nothing was sent:"
        " wait until the switch is released",
    )
