"""The scheduler's settings: kept in the store, used from memory."""

from dataclasses import replace

from controller.policy.schedule import Settings
from controller.policy.sleep_policies.fixed import check_keep_alive
from controller.store.protocol import KeptSettings, Store


class Scheduler:
    """How the scheduler is set, and what it has done since the start."""

    def __init__(self, store: Store, kept: KeptSettings, defaults: Settings) -> None:
        self._store = store
        self._kept = kept
        self._defaults = defaults
        self.sleep_count = 0
        """Agents it put to sleep since the start."""

    @property
    def settings(self) -> Settings:
        """Return the settings as they are now."""
        return self._settings(self._kept)

    def enabled(self, keep_alive_s: float | None) -> Settings:
        """Return what enabling would set; None keeps the keep-alive.

        Raises:
            Invalid: BAD_KEEP_ALIVE.
        """
        return self._settings(self._enabling(keep_alive_s))

    async def enable(self, keep_alive_s: float | None) -> None:
        """Let the scheduler act, once that is on disk.

        Raises:
            Invalid: BAD_KEEP_ALIVE.
        """
        await self._keep(self._enabling(keep_alive_s))

    async def disable(self) -> None:
        """Stop the scheduler at once, whether or not that can be kept."""
        kept = replace(self._kept, enabled=False)
        self._kept = kept
        await self._keep(kept)

    def _enabling(self, keep_alive_s: float | None) -> KeptSettings:
        if keep_alive_s is None:
            return replace(self._kept, enabled=True)
        return KeptSettings(enabled=True, keep_alive_s=check_keep_alive(keep_alive_s))

    async def _keep(self, kept: KeptSettings) -> None:
        await self._store.set_scheduler(kept)
        self._kept = kept

    def _settings(self, kept: KeptSettings) -> Settings:
        keep_alive_s = kept.keep_alive_s
        if keep_alive_s is None:
            keep_alive_s = self._defaults.keep_alive_s
        return replace(self._defaults, enabled=kept.enabled, keep_alive_s=keep_alive_s)
