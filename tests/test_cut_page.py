"""The page of how good cuts are is made of the stored results."""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_page_is_made_of_the_stored_results():
    sys.path.insert(0, str(ROOT / "benchmarks" / "cutting"))
    try:
        import cut_page
    finally:
        sys.path.pop(0)
    stored = (ROOT / "docs" / "measured-cuts.md").read_text(encoding="utf-8")
    assert cut_page.page() == stored, "run python benchmarks/cutting/cut_page.py"
