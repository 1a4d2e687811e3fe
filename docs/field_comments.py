"""Lets the comment beside or above a field be its description: `start: int  # first optimizer step of the stage`."""

import re
from typing import Any

import griffe

_COMMENT = re.compile(r"(?:^|\s)# (?P<text>.*)$")


def comment_of(attribute: griffe.Attribute) -> str:
    """The comment that ends the field's last line; without one, the lines of comment above it."""
    if attribute.lineno is None or attribute.endlineno is None:
        return ""
    lines = attribute.module.lines_collection[attribute.filepath]
    if beside := _COMMENT.search(lines[attribute.endlineno - 1]):
        return beside["text"].removeprefix("type: ignore").strip()
    above: list[str] = []
    for line in reversed(lines[: attribute.lineno - 1]):
        if not line.strip().startswith("# "):
            break
        above.insert(0, line.strip()[2:])
    return " ".join(above)


class FieldComments(griffe.Extension):
    """Gives fields without a docstring their comment as one."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Called for each attribute that is read from the source."""
        if attr.docstring is None and attr.parent is not None and attr.parent.is_class and (text := comment_of(attr)):
            attr.docstring = griffe.Docstring(text, parent=attr)
