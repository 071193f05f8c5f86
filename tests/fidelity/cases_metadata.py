"""Metadata of every kind, both ways, before and after."""

from tests.support.fidelity_cases import case

KINDS = {
    "ascii": (("x-a", "one"), ("x-b", "b~! \"#$%&'()*+/:;<=>?@[]^_`{|}")),
    "repeated": tuple(("x-n", str(number)) for number in range(20)),
    "mixed": (("x-a", "1"), ("x-b", "2"), ("x-a", "3"), ("x-b", "4"), ("x-a", "5")),
    "empty": (("x-empty", ""), ("x-empty", ""), ("x-empty-bin", b"")),
    "commas": (("x-list", "a,b,,c"), ("x-list", ",")),
    "spaces": (("x-inner", "a  b"), ("x-lead", " a"), ("x-trail", "a ")),
    "names": (("x-1.2_3-4", "v"), ("0", "digit"), ("a", "short")),
    "binary": (("x-bin", bytes(range(256))), ("x-0-bin", b"\0"), ("x-ff-bin", b"\xff")),
    "binaries": tuple(("x-n-bin", bytes([n]) * n) for n in range(8)),
    "utf8": (("x-text-bin", "nicht möglich: 不可能".encode()),),
    "commas in binary": (("x-c-bin", b"a,b"), ("x-c-bin", b","), ("x-c-bin", b"c")),
    "tracing": (
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("tracestate", "a=1,b=2"),
        ("baggage", "k=v"),
    ),
    "credentials": (("authorization", "Bearer abc"), ("cookie", "a=b; c=d")),
    "idempotency": (("idempotency-key", "6f1c"),),
    "grpc-like": (("grpc-foo", "1"), ("grpc-foo-bin", b"\1"), ("x-grpc-status", "7")),
    "http-like": (("host", "shop"), ("connection", "close"), ("accept", "*/*")),
    "many": tuple((f"x-key-{number}", f"value {number}") for number in range(300)),
    "none": (),
}


async def reflect(call):
    """Send what came back, before and after, with a message between."""
    await call.headers(*call.metadata)
    await call.read_all()
    await call.write(b"between")
    call.end(0, "", *call.metadata)


@case(over=tuple(KINDS))
async def metadata_pass_in_every_direction(caller, upstream, kind):
    """Up with the request, down before the first message, down with the status."""
    upstream.script = reflect
    return [await caller.unary(b"x", metadata=KINDS[kind]).response()]


@case(over=("ascii", "repeated", "binary", "mixed", "many"))
async def metadata_pass_with_a_failure(caller, upstream, kind):
    """With a status alone, in whose place there are no headers."""

    async def script(call):
        await call.read_all()
        call.end(5, "not here", *call.metadata)

    upstream.script = script
    return [await caller.unary(b"x", metadata=KINDS[kind]).response()]


@case(over=("stream", "upload", "download"))
async def metadata_pass_on_streams(caller, upstream, arity):
    """On a stream they come before the first message is sent or answered."""
    upstream.script = reflect
    given = {"metadata": KINDS["mixed"] + KINDS["binaries"]}
    if arity == "download":
        call = caller.download(b"x", **given)
        await call.headers()
        return [await call.rest()]
    call = caller.stream(**given) if arity == "stream" else caller.upload(**given)
    await call.headers()
    await call.write(b"1", b"2")
    await call.done()
    return [await (call.rest() if arity == "stream" else call.response())]


@case(over=(9, 12, 15, 40, 60))
async def large_metadata_pass_every_time(caller, upstream, kib):
    """Not now and then: gRPC's own limits would refuse some of these at random."""
    upstream.script = reflect
    sent = (("x-large", "v" * (kib * 1024 - 512)),)
    return [
        await caller.unary(b"", metadata=sent, timeout=30).response() for _ in range(8)
    ]


@case(over=(12, 60))
async def large_metadata_pass_as_many_values(caller, upstream, kib):
    """The same size in many small pieces."""
    upstream.script = reflect
    sent = tuple(("x-part", "v" * 96) for _ in range(kib * 1024 // 160))
    return [await caller.unary(b"", metadata=sent).response() for _ in range(3)]


@case(over=(9, 15, 40))
async def large_details_of_a_failure(caller, upstream, kib):
    """A failure may explain itself at length, every time."""

    async def script(call):
        await call.read_all()
        call.end(3, "see the details", ("grpc-status-details-bin", bytes(kib * 1024)))

    upstream.script = script
    return [await caller.unary(b"", timeout=30).response() for _ in range(8)]


@case()
async def headers_and_trailers_are_not_mixed_up(caller, upstream):
    """The same key before and after keeps its two values in their two places."""

    async def script(call):
        await call.headers(("x-place", "before"))
        await call.write(b"m")
        call.end(0, "", ("x-place", "after"))

    upstream.script = script
    return [await caller.stream().rest()]


@case()
async def method_names_pass(caller, upstream):
    """Any method of any service, with dots and digits and of any length."""
    upstream.script = reflect
    names = ("Any", "a", "With.Dots", "Under_score9", "L" * 500)
    found = [await caller.unary(b"", name=name).response() for name in names]
    return [*found, [("methods", tuple(upstream.methods))]]
