"""Credentials of an upstream that change when their files do."""

import asyncio
from collections.abc import Callable

import grpc

from outrigger.core.errors import Invalid
from outrigger.core.events import Alerted, Recovered
from sidecar.wire.peer_tls import PeerTls, Stamp
from sidecar.wire.surroundings import Surroundings


class Rotation:
    """The files of one upstream; `run` follows them."""

    def __init__(
        self,
        upstream: str,
        tls: PeerTls,
        on_change: Callable[[], None],
        surroundings: Surroundings,
    ) -> None:
        """Read the files.

        Args:
            upstream: named in events.
            tls: the files.
            on_change: told when `credentials` are new.
            surroundings: clock, and somebody to tell.

        Raises:
            Invalid: BAD_TLS_FILE.
        """
        self._upstream = upstream
        self._tls = tls
        self._on_change = on_change
        self._outside = surroundings
        self._failing_since: float | None = None
        self._stamp: Stamp
        self.credentials: grpc.ChannelCredentials
        self.credentials, self._stamp = tls.load()

    async def run(self) -> None:
        """Look at the files until cancelled."""
        while True:
            await self._outside.clock.sleep(self._outside.times.reload_s)
            try:
                fresh = await asyncio.to_thread(self._fresh)
            except (Invalid, OSError) as error:
                self._failed(error)
                continue
            self._well()
            if fresh is not None:
                self.credentials, self._stamp = fresh
                self._on_change()

    def _fresh(self) -> tuple[grpc.ChannelCredentials, Stamp] | None:
        """Return new credentials; None if the files are as they were."""
        return None if self._tls.stamp() == self._stamp else self._tls.load()

    def _failed(self, error: Exception) -> None:
        """Alert once per failure, not once per look."""
        if self._failing_since is not None:
            return
        self._failing_since = self._outside.clock.monotonic()
        self._outside.publish(
            Alerted(
                name="UPSTREAM_TLS_UNUSABLE",
                message=f"upstream {self._upstream}: its new TLS files cannot be used"
                f" ({error}); the old ones stay in use, and the look is repeated",
            )
        )

    def _well(self) -> None:
        if self._failing_since is not None:
            elapsed_s = self._outside.clock.monotonic() - self._failing_since
            self._failing_since = None
            subject = f"TLS files of {self._upstream}"
            self._outside.publish(Recovered(subject=subject, elapsed_s=elapsed_s))
