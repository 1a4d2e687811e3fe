"""Writes the pages of the reference that are made from the code: `python docs/generate_reference.py`.

The settings come from the pydantic models (their types, defaults and bounds) and the comments beside their fields; the
command line comes from typer.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import griffe
import typer
from pydantic import BaseModel
from typer.cli import get_docs_for_click

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from field_comments import comment_of  # noqa: E402

from estfx import Schedule, Stage  # noqa: E402
from estfx.bench import BenchSettings  # noqa: E402
from estfx.cli import app  # noqa: E402
from estfx.training import DataSettings, ModelSettings, ScheduleSettings, TrainSettings  # noqa: E402

RUN = {"model": ModelSettings, "data": DataSettings, "train": TrainSettings, "schedule": ScheduleSettings}


def settings_page() -> str:
    """The settings of a run, of a schedule file and of a measurement."""
    source = griffe.load("estfx", search_paths=[HERE.parent])
    parts = [
        "# Settings",
        "Settings are YAML files, or `--set section.key=value` on the command line. An unknown key is an error. This "
        "page is made from the code by `python docs/generate_reference.py`.",
        "## A run: `estfx train RUN.yaml`",
        "A file has the four sections below. What is left out has its default. The same values from Python: "
        "`estfx.training.RunConfig`.",
    ]
    for name, model in RUN.items():
        parts += [f"### `{name}`", _about(model), _table(source, model)]
    parts += [
        "## A schedule: `estfx dump --schedule SCHEDULE.yaml`",
        "The same values from Python: [`estfx.Schedule`](api.md#estfx.Schedule).",
        *(part.replace("\n    ", "\n") for part in (Schedule.__doc__ or "").split("\n\n    ")[1:]),
        _table(source, Schedule),
        "### A stage",
        _about(Stage),
        _table(source, Stage),
        "## A measurement: `estfx bench --set key=value`",
        _table(source, BenchSettings),
    ]
    return "\n\n".join(parts) + "\n"


def command_line_page() -> str:
    """What `--help` says of every command."""
    command = typer.main.get_command(app)
    context = command.context_class(command, info_name="estfx")
    text = get_docs_for_click(obj=command, ctx=context, name="estfx")
    text = re.sub(r"`[^`]*`|<", lambda found: "&lt;" if found[0] == "<" else found[0], text)
    text = text.replace("# `estfx`\n", "# The command line\n", 1)
    text = re.sub(r"^estfx .*(?:\n\nestfx .*)*$", lambda found: _as_code(found[0]), text, flags=re.MULTILINE)
    for name, each in command.commands.items():  # typer shortens them
        text = text.replace(f"* `{name}`: ", f"* [`{name}`](#estfx-{name}): {_first_sentence(each.help)}\0")
    text = re.sub("\0.*", "", text)
    made = "This page is made from the code by `python docs/generate_reference.py`."
    return text.replace("**Usage**", f"{made}\n\n{OF_ALL_COMMANDS}\n**Usage**", 1).rstrip() + "\n"


OF_ALL_COMMANDS = """`MODEL` is one of three: a causal language model type of transformers (`gpt2`), a folder with a
`config.json`, or a function of your own (`path.py:factory`).

| exit status | says |
|---|---|
| 0 | done |
| 1 | the work failed |
| 2 | the input is wrong |
| 3 | told to terminate (SIGTERM), and stopped with a checkpoint |
| 130 | interrupted (Ctrl-C); a run has stopped with a checkpoint |
"""


PAGES = {"settings.md": settings_page, "command-line.md": command_line_page}


def _as_code(examples: str) -> str:
    return "```sh\n" + examples.replace("\n\n", "\n") + "\n```"


def _first_sentence(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


def _about(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split())


def _table(source: Any, model: type[BaseModel]) -> str:
    schema = model.model_json_schema()
    members = source[model.__module__.removeprefix("estfx.")][model.__name__].members
    lines = ["| key | is | default | |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else f"`{_default(field.get_default(call_default_factory=True))}`"
        about = comment_of(members[name])
        lines.append(f"| `{name}` | {_kind(schema['properties'][name], schema)} | {default} | {_cell(about)} |")
    return "\n".join(lines)


def _default(value: Any) -> str:
    if isinstance(value, BaseModel):
        return json.dumps(value.model_dump(mode="json"))
    return value if isinstance(value, str) else json.dumps(value)


def _kind(schema: dict[str, Any], root: dict[str, Any]) -> str:
    """A JSON schema in words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(each, root) for each in schema["anyOf"]))
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return {"Stage": "stage", "ModelSettings": "section `model`"}.get(name, name)
    if "enum" in schema:
        return " or ".join(f"`{_default(each)}`" for each in schema["enum"])
    if "const" in schema:
        return f"`{_default(schema['const'])}`"
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'], root)}"
    word = {"integer": "whole number", "string": "text", "boolean": "`true` or `false`", "object": "keys and values"}
    bounds = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    limits = [f"{sign} {schema[key]:.12g}" for key, sign in bounds.items() if key in schema]
    kind = schema.get("type", "anything")
    return " ".join([word.get(kind, kind), *([", ".join(limits)] if limits else [])])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    for name, make in PAGES.items():
        (HERE / "reference" / name).write_text(make(), encoding="utf-8")
