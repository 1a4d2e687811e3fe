"""`estfx cut`."""

import json
from typing import Annotated, Literal

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

__all__ = ["cut"]

By = Literal["magnitude", "gradient", "fisher", "activation"]
LayersBy = Literal["influence", "loss"]


def cut(
    model: Model,
    keep: Annotated[
        str,
        typer.Option(
            "--keep",
            metavar="PART=SHARE,…",
            help="What share of heads, neurons and layers stays: heads=0.75,neurons=0.5,layers=0.75.",
        ),
    ],
    out: NewFolder,
    by: Annotated[By, typer.Option("--by", help="How units are scored; all but magnitude need --text.")] = "magnitude",
    layers_by: Annotated[
        LayersBy | None, typer.Option("--layers-by", help="How layers are scored, from --text. Default: influence.")
    ] = None,
    text: Annotated[
        list[str] | None,
        TEXT,
    ] = None,
    column: Column = "text",
    tokenizer: Tokenizer = None,
    samples: Samples = 64,
    seq_len: SeqLen = None,
    batch_size: BatchSize = 8,
    round_to: RoundTo = 1,
    reform: Reform = False,
    plot: KeptPlot = None,
    config: ConfigValues = None,
    layers: LayerNames = None,
    as_json: AsJson = False,
) -> None:
    """Cut the best part out of a model, as a smaller model of the same class.

    estfx cut runs/llama/model --keep heads=0.75,neurons=0.5 --by activation --text 'texts/*.txt' --reform --out small

    The folder is an ordinary checkpoint where a configuration says it all; else `import estfx` before from_pretrained.
    """
    from estfx.cli.calibration_text import Calibration
    from estfx.cli.cut_settings import CutSettings, shares_of
    from estfx.settings import SettingsError
    from estfx.training import check_model, holds_weights, parse_options
    from estfx.waiting import working

    shares = shares_of(keep)
    check_new_folder(out)
    needs = [f"--by {by}"] * (by != "magnitude") + ["--reform"] * reform + ["--layers-by"] * (layers_by is not None)
    needs += [f"--keep layers={shares['layers']}"] * (shares["layers"] < 1)
    if needs and not text:
        raise SettingsError(f"{' and '.join(needs)} needs calibration text: --text 'texts/*.txt', or standard-library.")
    check_plot(plot)
    options = parse_options(config or ())
    check_model(model, options, length=("--seq-len", seq_len))
    settings = CutSettings(
        shares=shares,
        by=by,
        layers_by=layers_by,
        calibration=Calibration(tuple(text or ()), column, tokenizer, samples, seq_len, batch_size),
        round_to=round_to,
        reform=reform,
        layers=tuple(layers) if layers else None,
    )
    settings.calibration.check(model, "cut")
    with working("loading transformers"):
        from estfx.cli.cut_run import cut_as_set

    done = cut_as_set(model, options, settings, out, weights=holds_weights(model))
    if plot is not None:
        done.plot(plot, title=model)
    typer.echo(json.dumps(done.as_json(), indent=1) if as_json else str(done))
