"""`python -P -m sidecar`: the same as `outrigger sidecar`."""

import asyncio
import os
import sys

from outrigger.core.errors import OutriggerError
from outrigger.core.exits import exit_code
from sidecar.app import run
from sidecar.config import from_args

if __name__ == "__main__":
    try:
        code = asyncio.run(run(from_args(sys.argv[1:], os.environ)))
    except OutriggerError as error:
        sys.stderr.write(f"sidecar: {error.message} [{error.reason}]\n")
        code = exit_code(error)
    raise SystemExit(code)
