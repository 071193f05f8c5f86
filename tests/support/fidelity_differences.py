"""What a relay cannot or does not pass on: the whole list, each with its reason.

Every entry has a test of its name in tests/fidelity/test_known_differences.py, which
holds that the difference is just this one. The suite compares with KEPT_METADATA
applied, and with nothing else.
"""

KEPT_METADATA = ("grpc-previous-rpc-attempts",)
"""Request metadata that end at the sidecar in calls of the suite."""

DIFFERENCES = {
    "previous_attempts": (
        "Every attempt of a caller's own retry policy reaches the callee, but without"
        " its number. It says how often the caller came to the sidecar, which charges"
        " its retry budget by it; to the callee each of them is a call. grpcio takes"
        " the key out anyway unless its retries are off, and then it would not send"
        " again what a GOAWAY turned away."
    ),
    "request_metadata_of_ours": "Keys that begin with outrigger- are for the sidecar.",
    "trailers_of_ours": (
        "Five trailers only the sidecar may set; a callee could make up a letter's id."
    ),
    "user_agent": "The library of the last hop puts its own name.",
    "authority": (
        "grpcio does not show :authority to a server. The callee is told the"
        " upstream's; the caller's never chose the route."
    ),
    "content_subtype": "grpcio shows no content-type; each hop says application/grpc.",
    "peer": "The callee is connected to the sidecar, by one connection for all.",
    "compression": (
        "It is hop by hop: grpcio undoes it before anybody sees a message, and hides"
        " that it was there. Messages are the same; the callee's hop is uncompressed."
    ),
    "wait_for_ready": (
        "Not on the wire: a caller waits for the sidecar, which is there. That the"
        " upstream is not is told at once, so that it may be retried or kept."
    ),
    "metadata_beyond_64_kib": (
        "Peers may agree on more; the sidecar takes 64 KiB surely, 128 KiB at most."
    ),
    "empty_headers_and_a_failure_at_once": (
        "grpcio reports empty headers for Trailers-Only too. Headers without content"
        " that a failure follows within 3 ms may become Trailers-Only, so that the"
        " caller's own policy may try again. Later ones never do."
    ),
    "illegal_metadata_of_a_callee": (
        "grpcio reads values that it refuses to send; they are left out."
    ),
    "illegal_metadata_of_a_caller": (
        "The same upwards: the call is refused as INVALID_ARGUMENT, not sent in part."
    ),
    "status_numbers": (
        "grpcio has 17 statuses; another number arrives as 2, UNKNOWN, which is what"
        " gRPC says it means. The message stays."
    ),
    "pushback_that_is_no_number": (
        "grpcio reads grpc-retry-pushback-ms as a number; what is none arrives as the"
        " smallest one. Both mean: do not retry."
    ),
    "cancelled_upload_on_a_busy_machine": (
        "grpcio reports a cancelled request first as one that has ended, and nothing"
        " tells the two apart but the cancellation that follows. Where the machine is"
        " so busy that it comes more than 5 ms later, the callee sees a half-close"
        " before the reset."
    ),
    "callee_of_a_message_too_large": (
        "The sidecar has taken a message before its caller refuses it, so that the"
        " callee may be done by then and not hear of it."
    ),
}


def as_relayed(observation):
    """Return a direct observation as a relay is allowed to show it."""
    for call in observation.upstream:
        if isinstance(call, dict):
            call["metadata"] = tuple(
                pair for pair in call["metadata"] if pair[0] not in KEPT_METADATA
            )
    return observation
