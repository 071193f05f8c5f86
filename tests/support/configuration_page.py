"""docs/configuration.md, made from the options themselves.

`python -P -m tests.support.configuration_page` writes it; a test compares.
"""

from pathlib import Path

from controller import config as controller_config
from outrigger.core.config import REQUIRED, Option
from sidecar import config as sidecar_config

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"

HEAD = """# Configuration

Made from the code by `python -P -m tests.support.configuration_page`; do not edit.

A flag wins over its environment variable, which wins over the TOML file named by
`--config`. Unknown flags and keys are errors, and every mistake is reported at once.
Times are written as `1.5`, `300ms`, `5s`, `2m`, `1h`, `1d`; sizes as `4096`, `256KiB`,
`64MiB`, `2GiB`.
"""

TABLES = """
## Tables of the sidecar's TOML file

```toml
[upstreams.shop]                      # the same as --upstream shop=...
target = "shop.internal:50051"        # any gRPC target: host:port, dns:///..., unix:...
services = ["shop.Orders"]            # calls to these services go here

[[methods]]
match = "/shop.Orders/Place"          # a method, "/package.Service/*", or "*"
letter = true                         # or "always": also after the deadline
idempotent = true                     # sending twice does no harm: more is retried
unsafe = false                        # true: never sent again
timeout_s = 5.0                       # of one attempt
max_attempts = 3                      # 1 to 5
```

A call goes to the upstream named in its metadata `outrigger-upstream`, else to that of
the longest service prefix, else to the upstream named `default` or the only one.
"""


def page() -> str:
    """Return the whole page."""
    return "\n".join(
        [
            HEAD,
            _table("outrigger sidecar", sidecar_config.OPTIONS),
            TABLES,
            _table("outrigger controller", controller_config.OPTIONS),
        ]
    )


def _table(title: str, options: tuple[Option, ...]) -> str:
    rows = [
        f"## {title}",
        "",
        "| flag | variable | default | what |",
        "|---|---|---|---|",
    ]
    rows += [
        f"| `{one.flag} {one.metavar}` | `{one.variable}` | {_default(one)} |"
        f" {one.help} |"
        for one in options
    ]
    return "\n".join(rows) + "\n"


def _default(option: Option) -> str:
    if option.default is REQUIRED:
        return "required"
    if option.default in (None, (), ""):
        return "-"
    return f"`{option.default}`"


if __name__ == "__main__":
    PAGE.write_text(page())
