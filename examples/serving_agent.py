"""An agent that serves calls and is woken by them: it echoes, and counts them.

outrigger sidecar --agent-id echo --inbound 127.0.0.1:7702 -- python serving_agent.py

Call /examples.Echo/Echo on the sidecar's inbound listener, awake or asleep.
"""

from concurrent.futures import ThreadPoolExecutor

import grpc

from outrigger.client import attach


class Echo(grpc.GenericRpcHandler):
    """Bytes in, the same bytes out; `calls` is the state."""

    calls = 0

    def service(self, details):
        if details.method == "/examples.Echo/Echo":
            return grpc.unary_unary_rpc_method_handler(self.echo)
        return None

    def echo(self, request, context):
        with agent.working():
            self.calls += 1
        return request

    def save(self):
        return str(self.calls).encode()

    def restore(self, state):
        self.calls = int(state)


echo = Echo()
agent = attach(echo.save, echo.restore)
agent.wait_until_restored()
server = grpc.server(ThreadPoolExecutor(8), handlers=(echo,))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
agent.serving(f"127.0.0.1:{port}")
agent.wait_until_stopped()
server.stop(1).wait()
agent.close()
