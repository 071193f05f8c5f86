"""docs/configuration.md, made from the options themselves.

`python -P -m tests.support.configuration_page` writes it; a test compares.
"""

import ast
import inspect
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from itertools import pairwise
from pathlib import Path
from textwrap import dedent

from controller import config as controller_config
from outrigger.core.config import REQUIRED, Option
from sidecar import method_config, policy_config, upstream_config
from sidecar.call.routes import MethodRule
from sidecar.call.standing import UpstreamPolicy
from sidecar.options import OPTIONS as SIDECAR_OPTIONS
from sidecar.upstream_config import UpstreamTable

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"

HEAD = """# Configuration

Made from the code by `python -P -m tests.support.configuration_page`; do not edit.

A flag wins over its environment variable, which wins over the TOML file named by
`--config`. Unknown flags and keys are errors, and every mistake is reported at once.
Times are written as `1.5`, `300ms`, `5s`, `2m`, `1h`, `1d`; sizes as `4096`, `256KiB`,
`64MiB`, `2GiB`.
"""

EXAMPLE = """queue = 100                           # a flag as well: --queue 100

[circuit]                             # for all upstreams
slow_s = "off"

[upstreams.shop]
target = "shop.internal:50051"        # the same as --upstream shop=...
services = ["shop.Orders"]            # calls to these services go here
tls = true

[upstreams.shop.circuit]              # for this one; what is not said is taken over
slow_s = "500ms"
consecutive_failures = 3

[upstreams.models]
addresses = ["10.0.0.1:50051", "10.0.0.2:50051"]
balance = "round_robin"
limit = "adaptive"

[upstreams.models.adaptive]
most = 64

[[methods]]
match = "/shop.Orders/Place"
letter = true
idempotent = true
timeout_s = 5.0
retry_on = ["UNAVAILABLE", "ABORTED"]
hedge_s = "800ms"
"""

TABLES = f"""
## Tables of the sidecar's TOML file

```toml
{EXAMPLE}```

The tables `[circuit]`, `[retry]`, `[budget]`, `[adaptive]` and `[outlier]` hold for
every upstream; `[upstreams.NAME.circuit]` and so on hold for one, and keys that are not
in there are taken over from the former. `[adaptive]` takes part where `limit` is
`"adaptive"`, `[outlier]` where calls take turns.
A key that is left out is what the lists call None; a time that is `"off"` is infinite,
and `keepalive_s = "off"` means no pings. `letter = true` is the same as `"on"`.

A call goes to the upstream named in its metadata `outrigger-upstream`, else to that of
the longest service prefix, else to the upstream named `default` or the only one.

`outrigger check --config FILE` reads such a file and lists everything that is wrong
with it, by its place: `upstreams.shop.circuit.failure_ratio: 7 is more than 1`; methods
are counted from 1, as in `methods[2].hedge_s`.
"""

DEFAULTS = {"limit": f'`"{policy_config.FIXED}"`'}
EFFECTS = {
    "limit": "Whether the limit of calls in flight is `concurrency`, or learnt from how"
    " long calls take.",
}
"""Of keys that are no fields."""


def page() -> str:
    """Return the whole page."""
    return "\n".join(
        [
            HEAD,
            _table("outrigger sidecar", SIDECAR_OPTIONS),
            TABLES,
            *key_tables(),
            _table("outrigger controller", controller_config.OPTIONS),
        ]
    )


def key_tables() -> list[str]:
    """Return a list of keys for each table of the sidecar's file."""
    upstream = upstream_config.KEYS | policy_config.KEYS
    owners = [UpstreamTable, UpstreamPolicy]
    sections = [_keys("`[upstreams.NAME]`", upstream, owners)]
    for name, settings in policy_config.ALL_TABLES.items():
        title = f"`[{name}]` and `[upstreams.NAME.{name}]`"
        sections.append(_keys(title, policy_config.TABLE_KEYS[name], [settings]))
    sections.append(_keys("`[[methods]]`", method_config.KEYS, [MethodRule]))
    return sections


def _keys(title: str, keys: Mapping[str, object], owners: list[type]) -> str:
    effects = EFFECTS | {
        name: text for owner in owners for name, text in field_docs(owner).items()
    }
    defaults = DEFAULTS | {
        one.name: _shown(one) for owner in owners for one in fields(owner)
    }
    rows = [f"### {title}", "", "| key | value | default | what |", "|---|---|---|---|"]
    rows += [
        f"| `{key}` | {kind.unit} | {defaults[key]} | {effects[key]} |"
        for key, kind in keys.items()
    ]
    return "\n".join(rows) + "\n"


def _shown(one: Field) -> str:
    if one.default in (None, MISSING, ()):
        return "required" if one.name == "match" else "-"
    if one.name.endswith("_s"):
        return f"`{one.default:g}` s"
    if isinstance(one.default, bool):
        return f"`{str(one.default).lower()}`"
    return f'`"{one.default}"`' if isinstance(one.default, str) else f"`{one.default}`"


def field_docs(owner: type) -> dict[str, str]:
    """Return what the source of a dataclass says below each of its fields."""
    (body,) = ast.parse(dedent(inspect.getsource(owner))).body
    found = {}
    for one, below in pairwise(body.body):
        if isinstance(one, ast.AnnAssign) and isinstance(below, ast.Expr):
            found[one.target.id] = " ".join(below.value.value.split())
    return found


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
