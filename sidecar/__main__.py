"""`python -P -m sidecar`: the same as `outrigger sidecar`."""

import asyncio
import os
import sys

from outrigger.core.errors import OutriggerError
from sidecar.app import run
from sidecar.config import from_args

if __name__ == "__main__":
    try:
        code = asyncio.run(run(from_args(sys.argv[1:], os.environ)))
    except OutriggerError as error:
        sys.stderr.write(f"sidecar: {error.message}\n")
        code = 2
    raise SystemExit(code)
