"""Documents that are made from code are what the code makes."""

import re
from pathlib import Path

from tests.support.configuration_page import PAGE, page

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
