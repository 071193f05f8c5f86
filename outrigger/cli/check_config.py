"""Checks of the TOML file that a sidecar is to be started with.

Imported only with --config: it imports what a sidecar imports.
"""

from collections.abc import Iterator, Mapping

from outrigger.cli.finding import Finding, bad, good
from outrigger.core.errors import Invalid
from sidecar.config import SidecarConfig, from_file


def configuration(path: str, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield each mistake of a sidecar's configuration, or what it says."""
    check = f"configuration {path}"
    try:
        config = from_file(path, environ)
    except Invalid as error:
        for line in error.metadata.get("mistakes", error.message).split("\n"):
            yield bad(check, line, "mend it; docs/configuration.md lists every key")
        return
    yield good(check, _said(config))


def _said(config: SidecarConfig) -> str:
    known = ", ".join(sorted(config.upstreams)) or "none"
    own = ", ".join(sorted(config.guard.upstreams)) or "none"
    return (
        f"upstreams: {known}; with a policy of their own: {own}; method rules:"
        f" {len(config.rules)}"
    )
