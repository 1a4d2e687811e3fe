"""`estfx models`."""

import json
from importlib.resources import files
from typing import Annotated, Any

import typer
from rich.console import Console

from estfx.cli.commands.options import AsJson

__all__ = ["models"]


def models(
    part: Annotated[
        str | None, typer.Argument(metavar="[PART]", help="Only types that have this in their names.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the model types of transformers, with what is found in each, as it was seen in a sweep over all of them.

    The size is that of a model with the type's default configuration. `estfx inspect TYPE` looks at one anew.

    estfx models qwen
    """
    from estfx.settings import SettingsError, nearest

    seen = json.loads((files("estfx.cli") / "model_types.json").read_text(encoding="utf-8"))
    types: dict[str, dict[str, Any]] = seen["types"]
    chosen = {name: each for name, each in types.items() if part is None or part.lower() in name.lower()}
    if not chosen:
        raise SettingsError(f"no type has {part!r} in its name; {nearest(str(part), types)}")
    if as_json:
        typer.echo(json.dumps({**seen, "types": chosen}, indent=2))
        return
    from estfx.showing import Cells, Lines, counted, print_shown

    rows = [
        (
            name,
            counted(each["parameters"]) if each["parameters"] else "?",
            ", ".join(each["found"]) or "nothing",
            each["whole"],
        )
        for name, each in chosen.items()
    ]
    print_shown(
        Console(),
        Lines(
            Cells(("type", "parameters", "found", "what stays whole"), rows, words=frozenset({0, 2, 3})),
            f"{len(chosen)} of {len(types)} types, seen with transformers {seen['transformers']} and torch "
            f"{seen['torch']}. All details: docs/architectures.md",
        ),
    )
