"""The committed API page is the one that the tables make."""

from pathlib import Path

from atom.server.reference import page

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "api.md"


def test_the_api_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m atom.server.reference"
