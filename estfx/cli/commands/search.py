"""`estfx search`."""

import json
from typing import Annotated

import typer

from estfx.cli.commands.options import (
    TEXT,
    AsJson,
    BatchSize,
    Column,
    ConfigValues,
    KeptPlot,
    LayerNames,
    Model,
    NewFolder,
    Reform,
    RoundTo,
    Samples,
    SeqLen,
    Tokenizer,
    check_new_folder,
    check_plot,
)

__all__ = ["search"]


def search(
    model: Model,
    target: Annotated[
        str,
        typer.Option(
            "--target",
            metavar="COST=SHARE,…",
            help="How much of the layers may be left: parameters=0.7, flops=0.7, seconds=0.7, or several.",
        ),
    ],
    text: Annotated[
        list[str],
        TEXT,
    ],
    out: NewFolder,
    population: Annotated[int, typer.Option("--population", min=2, help="Candidates of a generation.")] = 100,
    kept: Annotated[int, typer.Option("--kept", min=1, help="Parents of the next generation.")] = 10,
    generations: Annotated[int, typer.Option("--generations", min=0, help="After the first.")] = 50,
    levels: Annotated[int, typer.Option("--levels", min=1, help="Steps of a layer's numbers of units.")] = 8,
    column: Column = "text",
    tokenizer: Tokenizer = None,
    samples: Samples = 16,
    seq_len: SeqLen = None,
    batch_size: BatchSize = 8,
    round_to: RoundTo = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of all that is drawn.")] = 0,
    compile_: Annotated[bool, typer.Option("--compile", help="Compile the programs, with torch.compile.")] = False,
    reform: Reform = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the search in --out.")] = False,
    plot: KeptPlot = None,
    config: ConfigValues = None,
    layers: LayerNames = None,
    as_json: AsJson = False,
) -> None:
    """Search for the best part of a model, of a given size, without training; and cut it out.

    estfx search runs/llama/model --target parameters=0.7 --text 'texts/*.txt' --reform --out small

    After Ctrl-C the search goes on with --resume. DIR/search.json says where it was.
    """
    from estfx.cli.calibration_text import Calibration
    from estfx.cli.cut_settings import SearchSettings, limits_of
    from estfx.settings import SettingsError
    from estfx.training import check_model, holds_weights, parse_options
    from estfx.waiting import working

    limits = limits_of(target)
    state = out / "search.json"
    if resume and not state.is_file():
        raise SettingsError(f"--out {out} holds no search that could be gone on with: there is no {state.name} in it.")
    if not resume:
        check_new_folder(out, " Go on with the search in it by --resume." * state.is_file())
    check_plot(plot)
    options = parse_options(config or ())
    check_model(model, options, length=("--seq-len", seq_len))
    calibration = Calibration(tuple(text), column, tokenizer, samples, seq_len, batch_size)
    calibration.check(model, "search")
    settings = SearchSettings(
        limits=limits,
        calibration=calibration,
        population=population,
        kept=kept,
        generations=generations,
        levels=levels,
        round_to=round_to,
        seed=seed,
        compile=compile_,
        reform=reform,
        layers=tuple(layers) if layers else None,
    )
    with working("loading transformers"):
        from estfx.cli.search_run import search_as_set

    try:
        done = search_as_set(model, options, settings, out, weights=holds_weights(model))
    except KeyboardInterrupt:
        if state.is_file():
            typer.echo(f"interrupted. Go on with --resume --out {out}, and the same options.", err=True)
            raise typer.Exit(130) from None
        raise
    if plot is not None:
        done.cut.plot(plot, title=model)
    typer.echo(json.dumps(done.as_json(), indent=1) if as_json else str(done))
