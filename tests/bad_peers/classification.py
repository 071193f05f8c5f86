"""What the relay makes of every misbehaviour: the table, and its page in docs."""

from pathlib import Path
from typing import NamedTuple

from tests.support.misbehaviours import ANSWER, STAGES

PAGE = Path(__file__).parents[2] / "docs" / "bad-peers.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


class Row(NamedTuple):
    """One case; alternatives are separated by `or`."""

    what: str
    """What the upstream does."""
    status: str
    """What the caller gets."""
    origin: str
    """Who is held to have made that status."""
    counted: str
    """Which circuit counts a failure."""
    answer: bytes | None = ANSWER
    """The message of an OK; None means it has none."""
    deadline_s: float = 2.0


def fine(what, **more):
    """Return the row of a case that a caller does not notice."""
    return Row(what, "OK", "upstream", "none", **more)


def mute(what):
    """Return the row of one that never greets: its dial may take five seconds."""
    return Row(what, "DEADLINE_EXCEEDED", "transport", "upstream", deadline_s=0.5)


def lost(what):
    """Return the row of a connection that breaks or was never there."""
    return Row(what, "UNAVAILABLE", "transport", "upstream")


def answered(what, status):
    """Return the row of a failure over a sound connection."""
    return Row(what, status, "upstream", "method")


def broken(what, status="UNKNOWN"):
    """Return the row of a fault that the library answers by closing the connection.

    Most often it is seen that the connection went; if not, the callee is held to
    have answered. No circuit tells the two apart.
    """
    return Row(what, status, "unknown or upstream", "method")


def out_of_time(what, deadline_s=0.5):
    """Return the row of a callee that is reachable and gives no answer."""
    return Row(what, "DEADLINE_EXCEEDED", "unknown", "method", deadline_s=deadline_s)


_GOAWAY = {
    "goaway-before": lost("says of each new connection that it takes no calls"),
    "goaway-before-calm": lost("the same with ENHANCE_YOUR_CALM"),
    "goaway-before-last-above": fine("announces its end, and serves what still comes"),
    "goaway-unanswered": lost("GOAWAY instead of an answer, stream not covered"),
    "goaway-unanswered-calm": lost("the same with ENHANCE_YOUR_CALM"),
    "goaway-during-below": lost("GOAWAY after headers, last stream below the call's"),
    "goaway-during-below-calm": lost("the same with ENHANCE_YOUR_CALM"),
    "goaway-during-above": fine("GOAWAY after headers, the call covered and completed"),
    "goaway-during-above-calm": fine("the same with ENHANCE_YOUR_CALM"),
    "goaway-after": fine("GOAWAY behind the whole answer"),
    "goaway-after-calm": fine("the same with ENHANCE_YOUR_CALM"),
    "goaway-with-settings": out_of_time("GOAWAY in one piece with SETTINGS", 0.15),
}
_RESET_AS = {
    "refused": ("REFUSED_STREAM", "UNAVAILABLE", "method"),
    "cancel": ("CANCEL", "CANCELLED", "none"),
    "internal": ("INTERNAL_ERROR", "INTERNAL", "method"),
    "no-error": ("NO_ERROR", "INTERNAL", "method"),
}
_WHERE = {
    "nothing": "instead of an answer",
    "headers": "after headers",
    "part": "within a message",
    "data": "after a message",
}
_RESETS = {
    f"rst-{name}-after-{stage}": Row(
        f"RST_STREAM {code} {_WHERE[stage]}", status, "upstream", counted
    )
    for stage in STAGES[:-1]
    for name, (code, status, counted) in _RESET_AS.items()
} | {
    f"rst-{name}-after-trailers": fine(f"RST_STREAM {code} behind the whole answer")
    for name, (code, _, _) in _RESET_AS.items()
}
_FLOODS = {
    "ping-flood": fine("20,000 pings before its answer"),
    "ping-flood-unread": out_of_time("40,000 pings, and reads nothing"),
    "settings-flood": fine("20,000 SETTINGS before its answer"),
    "continuation-flood": answered(
        "32 MiB of one header block that never ends", "RESOURCE_EXHAUSTED"
    ),
    "continuation-flood-empty": broken(
        "20,000 empty pieces of a header block", "INTERNAL"
    ),
    "data-flood-empty": broken("20,000 empty pieces of data"),
}
_WINDOWS = {
    "streams-0": out_of_time("MAX_CONCURRENT_STREAMS 0"),
    "streams-1": fine("MAX_CONCURRENT_STREAMS 1"),
    "streams-changing": fine("MAX_CONCURRENT_STREAMS 0, 1, 0, then 100"),
    "window-1-byte": out_of_time("takes one byte of each request and no more"),
    "window-overflow": fine("opens its window further than windows go"),
    "window-step-0": broken("opens its window by nothing"),
}
_CONNECTIONS = {
    "garbage": lost("answers the connection with noise"),
    "http-1": lost("is an HTTP/1.1 server"),
    "tls": mute("is a TLS server"),
    "closes-at-once": lost("closes before SETTINGS"),
    "closes-before-answer": lost("closes after the request"),
    "closes-in-a-frame": lost("closes in the middle of a frame"),
    "silent": mute("accepts and says nothing"),
    "backlog-full": mute("does not even accept: its backlog is full"),
    "silent-after-settings": out_of_time("greets and never answers"),
    "silent-after-headers": out_of_time("sends headers and no more"),
    "silent-after-message": out_of_time("sends a message and no more"),
}
_STATUSES = {
    "no-grpc-status": answered("trailers without grpc-status", "UNKNOWN"),
    "no-trailers": answered("a message and no trailers", "UNKNOWN"),
    "grpc-status-99": answered("grpc-status 99", "UNKNOWN"),
    "grpc-status-abc": answered("grpc-status abc", "INTERNAL"),
    "grpc-status-empty": answered("an empty grpc-status", "INTERNAL"),
    "no-content-type": fine("no content-type"),
    "html": answered("200 with a page", "UNKNOWN"),
    "http-404": Row("HTTP 404", "UNIMPLEMENTED", "upstream", "none"),
    "http-429": answered("HTTP 429", "UNAVAILABLE"),
    "http-502": answered("HTTP 502", "UNAVAILABLE"),
    "http-503": answered("HTTP 503", "UNAVAILABLE"),
    "http-502-with-a-page": answered("HTTP 502 and a page", "UNAVAILABLE or UNKNOWN"),
    "http-100-first": broken("HTTP 100 before its answer"),
    "no-http-status": fine("no :status"),
}
_FRAMES = {
    "data-before-headers": fine("the message before the headers"),
    "data-after-end": fine("data after END_STREAM"),
    "headers-twice": broken("headers twice"),
    "bad-hpack": broken("a header block that cannot be decoded", "INTERNAL"),
    "uppercase-header": answered("a header in upper case", "INTERNAL"),
    "newline-in-header": fine("a header value with a newline: left out"),
    "metadata-60-kib": fine("trailers of 60 KiB"),
    "metadata-240-kib": answered("headers of 240 KiB", "RESOURCE_EXHAUSTED"),
    "message-cut-short": fine(
        "a message shorter than it says, then OK: no message", answer=None
    ),
    "message-of-4-gib": fine("a message that says it has 4 GiB, then OK", answer=None),
    "message-unknown-flag": fine(
        "a message with an unknown flag: arrives empty", answer=b""
    ),
    "compressed-unknown": answered("an encoding nobody knows", "INTERNAL"),
    "compressed-undeclared": answered("compressed without an encoding", "INTERNAL"),
    "compressed-broken": answered("gzip that is none", "INTERNAL"),
    "frame-too-large": broken("a frame of 16 MiB"),
    "frame-of-unknown-kind": fine("a frame of a kind nobody knows"),
    "push-promise": fine("a push promise"),
    "data-on-stream-0": fine("data for the connection"),
    "answer-to-nobody": fine("an answer nobody asked for"),
    "even-stream": fine("a stream of its own"),
    "padding-too-long": answered("padding longer than its frame", "INTERNAL"),
    "rst-of-stream-0": fine("RST_STREAM of the connection"),
}
SECTIONS = {
    "GOAWAY": _GOAWAY,
    "RST_STREAM": _RESETS,
    "Floods": _FLOODS,
    "SETTINGS and windows": _WINDOWS,
    "Connections": _CONNECTIONS,
    "Statuses": _STATUSES,
    "Frames, headers, messages": _FRAMES,
}
CLASSIFICATION = {"well": fine("answers as it should")} | {
    name: row for section in SECTIONS.values() for name, row in section.items()
}


def tables():
    """Return the tables as the page has them."""
    lines = []
    for title, rows in SECTIONS.items():
        lines += [f"### {title}", ""]
        lines += ["| case | the upstream | the caller gets | origin | counted by |"]
        lines += ["|---|---|---|---|---|"]
        lines += [
            f"| `{name}` | {row.what} | {row.status} | {row.origin} | {row.counted} |"
            for name, row in rows.items()
        ]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    text = PAGE.read_text()
    head, _, rest = text.partition(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n\n{tables()}\n{END}{rest.partition(END)[2]}")
