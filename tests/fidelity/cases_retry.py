"""Callers that make calls again by gRPC's own policy, and callers that wait."""

import itertools
import json
import time

from tests.support.fidelity_cases import case
from tests.support.fidelity_observation import Observation

POLICY = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 3,
                    "initialBackoff": "0.03s",
                    "maxBackoff": "0.03s",
                    "backoffMultiplier": 1,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)
RETRIES = (("grpc.service_config", POLICY),)
PUSHBACKS = ("250", "1", "-1", "abc", "")


@case(over=(14, 13, 8), caller=RETRIES)
async def callee_always_fails(caller, upstream, code):
    """The callee sees three attempts of what may be retried, and else one."""

    async def script(call):
        await call.read_all()
        call.end(code, "always", ("x-tail", "1"))

    upstream.script = script
    return [await caller.unary(b"x").response()]


@case(over=("unary", "download", "upload", "stream"), caller=RETRIES)
async def third_attempt_succeeds(caller, upstream, arity):
    """The caller does not notice; the callee sees the same request three times."""

    async def script(call):
        await call.read_all()
        if len(upstream.calls) < 3:
            call.end(14, "not yet")
        else:
            await call.write(b"now")

    upstream.script = script
    if arity in {"unary", "download"}:
        call = getattr(caller, arity)(b"x")
    else:
        call = getattr(caller, arity)()
        await call.write(b"1", b"2")
        await call.done()
    whole = arity in {"unary", "upload"}
    return [await (call.response() if whole else call.rest())]


@case(over=PUSHBACKS, caller=RETRIES)
async def callee_pushes_back(caller, upstream, pushback):
    """A callee that says when to come again, or not to, is obeyed."""
    times = []

    async def script(call):
        times.append(time.monotonic())
        await call.read_all()
        call.end(14, "later", ("grpc-retry-pushback-ms", pushback))

    upstream.script = script
    events = await caller.unary(b"x").response()
    waits_s = [after - before for before, after in itertools.pairwise(times)]
    least_s = int(pushback) / 1000 - 0.001 if pushback.isdigit() else 0
    obeyed = [wait_s >= least_s for wait_s in waits_s]
    return Observation(caller=[events], facts={"waited long enough": obeyed})


@case(caller=RETRIES)
async def callee_pushes_back_by_nothing(caller, upstream):
    """At a push-back of 0 grpcio's own caller stops until its deadline."""

    async def script(call):
        await call.read_all()
        call.end(14, "at once", ("grpc-retry-pushback-ms", "0"))

    upstream.script = script
    return [await caller.unary(b"x", timeout=0.4).response()]


@case(over=("headers", "a message"), caller=RETRIES)
async def what_has_begun_is_not_retried(caller, upstream, what):
    """After headers or a message the callee sees no second attempt."""

    async def script(call):
        await call.read_all()
        if what == "headers":
            await call.headers(("x-head", "1"))
        else:
            await call.write(b"part")
        call.end(14, "in the middle")

    upstream.script = script
    return [await caller.download(b"x").rest()]


@case(caller=RETRIES)
async def callee_fails_while_the_request_is_open(caller, upstream):
    """Attempts are made of a stream that has not been half-closed, too."""

    async def script(call):
        await call.read()
        call.end(14, "too early")

    upstream.script = script
    call = caller.stream()
    await call.write(b"1")
    return [await call.rest()]


@case(over=(100_000, 400_000), caller=RETRIES)
async def large_request_with_a_policy(caller, upstream, size):
    """What the caller's own library keeps for a retry is retried, and no more."""

    async def script(call):
        await call.read_all()
        call.end(14, "always")

    upstream.script = script
    return [await caller.unary(bytes(size)).response()]


@case(caller=RETRIES)
async def deadline_over_all_attempts(caller, upstream):
    """The deadline of the call is over all its attempts."""

    async def script(call):
        await call.read_all()
        if len(upstream.calls) == 1:
            call.end(14, "once")
        else:
            await call.hang()

    upstream.script = script
    return [await caller.unary(b"x", timeout=0.3).response()]


@case(over=(0, 14))
async def caller_without_a_policy(caller, upstream, code):
    """Without a policy there is one attempt, and nothing added to it."""

    async def script(call):
        await call.read_all()
        call.end(code, "once")

    upstream.script = script
    return [await caller.download(b"x").rest()]


@case(over=(0, 5, 14))
async def caller_that_waits_for_ready(caller, upstream, code):
    """Such a caller is told what its callee says, failures included."""

    async def script(call):
        await call.read_all()
        if code == 0:
            await call.write(b"m")
        call.end(code, "said")

    upstream.script = script
    call = caller.unary(b"x", wait_for_ready=True, timeout=100)
    return [await call.response()]
