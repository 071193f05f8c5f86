"""The tables of a sidecar's database: each part keeps its own."""

from sidecar.agent import records as agent_records
from sidecar.call import records as circuit_records
from sidecar.config import SidecarConfig
from sidecar.letters import journal


def schema(config: SidecarConfig) -> str:
    """Return the SQL that makes the tables a sidecar needs."""
    parts = [agent_records.SCHEMA, circuit_records.SCHEMA, journal.SCHEMA]
    if config.redis is not None:
        # Imported only here: redis costs 10 MiB that most sidecars need not pay.
        from sidecar.letters import shared_tier  # noqa: PLC0415 - see above

        parts.append(shared_tier.SCHEMA)
    return "\n".join(parts)
