"""`estfx train`."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from estfx.cli.commands.options import AsJson

__all__ = ["train"]


def train(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG.yaml]", help="The run. Without one: a small GPT-2, in minutes.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=C", help="Overrides a value of the run. May be repeated."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="Short for --set model.name=MODEL: gpt2, llama, …")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="The run folder. Default: runs/<model>-<time>.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, from its last complete checkpoint.")
    ] = False,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="With --resume: go on with another configuration than before.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a decoder through its stages; without a CONFIG on the text of Python's own standard library.

    Runs under torchrun as it is: torchrun --nproc-per-node 2 -m estfx train …
    """
    from estfx.settings import SettingsError
    from estfx.training import RunConfig, RunFolder, check_model, check_text, default_folder
    from estfx.waiting import working

    if resume and out is None:
        raise SettingsError("--resume goes on with the run in a folder; say which by --out.")
    if accept_changes and not resume:
        raise SettingsError("--accept-changes is for --resume.")
    named = [f"model.name={json.dumps(model)}"] if model is not None else []
    changes = [*(overrides or ()), *named]
    if resume and config is None and out is not None and (out / "config.yaml").exists():
        config = out / "config.yaml" if changes else None
    run = None if resume and config is None else RunConfig.load(config, changes)
    folder = out if out is not None else default_folder((run or RunConfig()).model.name)
    # what can be refused at once is, before transformers is loaded, which takes seconds
    opened = RunFolder(folder, resume=resume, writes=int(os.environ.get("RANK", "0")) == 0)
    asked = run if run is not None else RunConfig.from_yaml(opened.config)
    data = asked.data
    small = {"max_position_embeddings": data.seq_len}  # if its configuration does not say
    check_model(asked.model.name, asked.model.config, length=("data.seq_len", data.seq_len), under=small)
    check_text(data.sources, column=data.column, tokenizer=data.tokenizer, seq_len=data.seq_len)
    asked.build_schedule()
    with working("loading transformers"):
        from estfx.training import train as run_training
    summary = run_training(run, folder, Console(stderr=True), resume=resume, accept_changes=accept_changes)
    if int(os.environ.get("RANK", "0")) != 0:  # the first one prints
        return
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        from estfx.training import print_summary

        print_summary(Console(), summary)
