"""An agent written with nothing but the generated stubs, run as a process.

Its state is a number. It attaches, restores, saves when asked, and does what a
line on its control socket says:

    add N      add to the number, answer it
    get        answer the number
    spawn      start a child that outlives it, answer its pid
    reattach   attach again, holding its state
    exit N     end with that code

Habits, as words on the command line: veto, mute (never answers prepare_sleep),
unsaved (never saves), cannot-save, wrong-epoch, forgetful (restores another
number), cannot-restore, deaf (ignores TERM), hermit (never attaches), fresh=N
(starts from N).
"""

import os
import queue
import signal
import socketserver
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import grpc

from outrigger.core.blocks import state_digest
from outrigger.v1 import attach_service_pb2 as attach_pb
from outrigger.v1 import checkpoint_service_pb2 as checkpoint_pb
from outrigger.v1.attach_service_pb2_grpc import AttachServiceStub
from outrigger.v1.checkpoint_service_pb2_grpc import CheckpointServiceStub

TOKEN = (("outrigger-token", os.environ["OUTRIGGER_TOKEN"]),)


class Agent:
    """The number and the stream."""

    def __init__(self, habits):
        self.habits = habits
        self.number = int(habits.get("fresh", 0))
        self.has_state = False
        channel = grpc.insecure_channel(os.environ["OUTRIGGER_API"])
        grpc.channel_ready_future(channel).result(timeout=10)
        self.attach_stub = AttachServiceStub(channel)
        self.checkpoints = CheckpointServiceStub(channel)
        self.out = queue.SimpleQueue()

    def attach(self):
        """Attach and obey until the stream ends."""
        self.out = out = queue.SimpleQueue()
        hello = attach_pb.Hello(
            pid=os.getpid(), client="stub", resumed=self.has_state, app_address=""
        )
        out.put(attach_pb.AttachRequest(hello=hello))
        responses = self.attach_stub.Attach(iter(out.get, None), metadata=TOKEN)
        for response in responses:
            order = response.WhichOneof("message")
            answer = getattr(self, f"on_{order}")(getattr(response, order))
            for message in answer or ():
                out.put(message)

    def on_welcome(self, welcome):
        """Restore what is named, then serve."""
        if welcome.restore_generation:
            if "cannot-restore" in self.habits:
                return [failed(0, "it makes no sense to me")]
            self.restore(welcome.restore_generation)
            restored = attach_pb.Restored(
                generation=welcome.restore_generation,
                state_digest=state_digest(self.raw()),
            )
            self.has_state = True
            return [attach_pb.AttachRequest(restored=restored), serving()]
        self.has_state = True
        return [serving()]

    def on_prepare_sleep(self, order):
        """Nothing is ever in flight here."""
        if "mute" in self.habits:
            return []
        if "veto" in self.habits:
            veto = attach_pb.Veto(epoch=order.epoch, reason="I am thinking")
            return [attach_pb.AttachRequest(veto=veto)]
        quiesced = attach_pb.Quiesced(epoch=order.epoch)
        return [attach_pb.AttachRequest(quiesced=quiesced)]

    def on_save(self, order):
        """Save the number under the epoch of the order."""
        if "unsaved" in self.habits:
            return []
        if "cannot-save" in self.habits:
            return [failed(order.epoch, "my disk is full")]
        epoch = 0 if "wrong-epoch" in self.habits else order.epoch
        try:
            generation = self.save(epoch)
        except grpc.RpcError as error:
            return [failed(order.epoch, str(error.details()))]
        saved = attach_pb.Saved(epoch=order.epoch, generation=generation)
        return [attach_pb.AttachRequest(saved=saved)]

    def on_resume(self, order):
        """Go on."""

    def on_stop(self, order):
        """Nothing to close."""

    def raw(self):
        """Return the state's bytes."""
        return str(self.number).encode()

    def save(self, epoch):
        """Send the state; return its generation."""
        raw = self.raw()
        request = checkpoint_pb.SaveCheckpointRequest
        commit = checkpoint_pb.SaveCommit(
            raw_size_bytes=len(raw), state_digest=state_digest(raw)
        )
        parts = [
            request(begin=checkpoint_pb.SaveBegin(epoch=epoch, schema="number")),
            request(chunk=raw),
            request(commit=commit),
        ]
        answer = self.checkpoints.SaveCheckpoint(iter(parts), metadata=TOKEN)
        return answer.checkpoint.generation

    def restore(self, generation):
        """Fetch a state."""
        request = checkpoint_pb.RestoreCheckpointRequest(generation=generation)
        parts = self.checkpoints.RestoreCheckpoint(request, metadata=TOKEN)
        raw = b"".join(part.chunk for part in parts)
        self.number = int(raw) + ("forgetful" in self.habits)

    def obey(self, line):
        """Do what the test says."""
        word, _, argument = line.partition(" ")
        match word:
            case "add":
                self.number += int(argument)
            case "save":
                return self.save(0)
            case "spawn":
                return subprocess.Popen(["/bin/sleep", "100"]).pid
            case "reattach":
                threading.Thread(target=self.attach, daemon=True).start()
            case "exit":
                os._exit(int(argument))
        return self.number


def serving():
    """Return the message that says so."""
    return attach_pb.AttachRequest(serving=attach_pb.Serving())


def failed(epoch, reason):
    """Return the message that says so."""
    return attach_pb.AttachRequest(failed=attach_pb.Failed(epoch=epoch, reason=reason))


def control(agent, path):
    """Serve the control socket."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            for line in self.rfile:
                answer = agent.obey(line.decode().strip())
                self.wfile.write(f"{answer}\n".encode())

    Path(path).unlink(missing_ok=True)
    server = socketserver.ThreadingUnixStreamServer(path, Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()


def main(words):
    """Live."""
    habits = dict(word.partition("=")[::2] for word in words[1:])
    if "deaf" in habits:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    agent = Agent(habits)
    control(agent, words[0])
    if "hermit" not in habits:
        with suppress(grpc.RpcError):  # replaced, or the sidecar is gone
            agent.attach()
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1:])
