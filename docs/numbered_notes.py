"""A hook of mkdocs: `[2] [4]` are numbers of notes in a table, not a link with the text 2."""

import re
from typing import Any


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Called for each page."""
    return re.sub(r"\[(\d+)\](?= |$)", r"\\[\1\\]", markdown) if page.file.src_uri == "architectures.md" else markdown
