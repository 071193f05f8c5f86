"""`python -m controller`: a controller without the rest of the command."""

import asyncio
import json
import logging
import os
import sys

from controller.app import run
from controller.config import from_args
from outrigger.core.errors import OutriggerError
from outrigger.core.exits import exit_code


def _announce(addresses: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(addresses) + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run until told to stop; return the exit code."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    try:
        config = from_args(sys.argv[1:], os.environ)
        return asyncio.run(run(config, announce=_announce))
    except OutriggerError as error:
        sys.stderr.write(f"{error.reason}: {error.message}\n")
        return exit_code(error)


if __name__ == "__main__":
    sys.exit(main())
