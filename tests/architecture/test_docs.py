"""Documents that are made from code are what the code makes."""

import re
from dataclasses import fields
from pathlib import Path

from sidecar import policy_config
from sidecar.call.routes import MethodRule
from sidecar.config import from_file
from sidecar.upstream_config import UpstreamTable
from tests.support.configuration_page import EXAMPLE, PAGE, page

ROOT = Path(__file__).parents[2]


def test_the_configuration_page_is_fresh():
    """Every flag, variable and default on the page is the code's own."""
    assert PAGE.read_text() == page()


def test_links_between_documents_lead_somewhere():
    """No document points at a file that is not there."""
    documents = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    broken = [
        f"{document.name}: {link}"
        for document in documents
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text())
        if not (document.parent / link).exists()
    ]

    assert broken == []


def test_every_key_of_every_table_is_on_the_configuration_page():
    """In the table's own section, with its default and a sentence about its effect."""
    sections = PAGE.read_text().split("\n### ")
    usual = {
        "`[upstreams.NAME]`": UpstreamTable(),
        **{
            f"`[{name}]` and `[upstreams.NAME.{name}]`": kind()
            for name, kind in policy_config.ALL_TABLES.items()
        },
        "`[[methods]]`": MethodRule(match="*"),
    }
    for title, settings in usual.items():
        (section,) = (one for one in sections if one.startswith(f"{title}\n"))
        row = r"^\| `(\w+)` \| [^|]+ \| ([^|]+?)(?: s)? \| .{10,}"
        cells = dict(re.findall(row, section, re.MULTILINE))
        expected = {
            one.name: shown(getattr(settings, one.name)) for one in fields(settings)
        }
        if "match" in expected:
            expected["match"] = "required"
        assert {name: cells[name] for name in expected} == expected


def shown(default):
    """Return a default as the page has it."""
    match default:
        case None | ():
            return "-"
        case bool():
            return f"`{str(default).lower()}`"
        case str():
            return f'`"{default}"`'
    return f"`{default:g}`"


def test_the_example_on_the_configuration_page_is_right(tmp_path):
    """Whoever copies it has something that starts."""
    path = tmp_path / "sidecar.toml"
    path.write_text(EXAMPLE)

    found = from_file(str(path), {"HOME": "/home/agent"})

    assert set(found.guard.upstreams) == {"shop", "models"}
    assert found.guard.of("shop").circuit.slow_s == 0.5
