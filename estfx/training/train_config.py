"""What a training run is made of: read from YAML, changed by `--set a.b=c`, and resolved to the last value."""

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from estfx.errors import ScheduleError
from estfx.schedules import (
    CYCLE,
    SCORES,
    Count,
    Fraction,
    PolicyName,
    Schedule,
    Share,
    Stage,
    default_preset,
    preset_schedule,
)
from estfx.settings import Settings, SettingsError, nearest
from estfx.training.document_sources import BYTES, STANDARD_LIBRARY
from estfx.training.model_argument import holds_weights, parse_options
from estfx.training.transformers_source import optimizer_names, tracker_names

__all__ = ["DECAY", "DataSettings", "ModelSettings", "RunConfig", "ScheduleSettings", "TrainSettings"]

Positive = Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, strict=True, allow_inf_nan=False)]


class ModelSettings(Settings):
    """The model to train."""

    name: str = "gpt2"  # a model type, a folder, or path.py:factory
    config: Mapping[str, Any] = Field(default_factory=dict)  # values of its configuration, over the small preset's


class DataSettings(Settings):
    """The text: by default Python's own standard library, bytes as tokens. All of it is held in memory."""

    # standard-library, files (patterns will do; .jsonl and .parquet by column, any other is one text), a dataset's name
    source: str | Annotated[Sequence[str], AfterValidator(tuple)] = STANDARD_LIBRARY
    column: str = "text"  # of JSON lines, Parquet files and datasets
    tokenizer: str = BYTES  # or a folder with a tokenizer of transformers
    seq_len: Annotated[int, Field(ge=2, strict=True)] = 128  # tokens
    held_out_blocks: Count = 256  # blocks of seq_len on which the held-out loss is taken

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,) if isinstance(self.source, str) else tuple(self.source)


DECAY = 0.2  # the share of a run in which the learning rate falls, with the shape warmup_stable_decay


class TrainSettings(Settings):
    """The optimizer's side."""

    total_steps: Count = 300  # optimizer steps
    batch_size: Count = 16  # blocks of a micro-batch, on each device
    accumulation: Count = 1  # micro-batches of an optimizer step
    optimizer: str = "adamw_torch_fused"  # as transformers' Trainer names them (its `optim`)
    learning_rate: Positive = 6e-4  # peak, after a linear warm-up; it then falls to 0
    # how it falls: along half a cosine, evenly, or (warmup_stable_decay) evenly in the last part of the run alone
    learning_rate_shape: Literal["cosine", "linear", "warmup_stable_decay"] = "cosine"
    decay_share: Fraction = DECAY  # that last part, a share of the run after the warm-up
    learning_rate_falls_with: Literal["steps", "flops"] = "steps"  # flops: more slowly while the stages are small
    warmup_steps: Annotated[int, Field(ge=0, strict=True)] = 30  # optimizer steps, of a linear warm-up from 0
    rewarm_steps: Annotated[int, Field(ge=0, strict=True)] = 0  # the same again at the beginning of each later stage
    # what joins at a later stage adds nothing at first; null: so it is, if the part is drawn once and not ranked, and
    # the model is a new one
    zero_joining: bool | None = Field(default=None, strict=True)
    optimizer_state: Literal["kept", "reset"] = "kept"  # Adam's running means, at the beginning of each later stage
    weight_decay: NotNegative = 0.1  # of matrices; norms and biases have none
    adam_beta2: Annotated[float, Field(gt=0, lt=1, strict=True)] = 0.95  # at 0.999 short runs spike after the warm-up
    max_grad_norm: Positive = 1.0  # to which gradients are clipped
    seed: Annotated[int, Field(ge=0, lt=2**32, strict=True)] = 0  # of weights, data order and draws
    compile: Literal["auto", True, False] = "auto"  # auto: with torch.compile if this machine can
    precision: Literal["float32", "bf16", "fp16"] = "float32"  # of autocast; the weights stay in float32
    distribution: Literal["ddp", "fsdp"] = "ddp"  # over several processes: the model on each, or its shards (FSDP2)
    gradient_checkpointing: bool = Field(default=False, strict=True)  # the kind that is not reentrant
    # optimizer steps between held-out losses; null: a tenth of the run; never: before and after alone
    eval_every: Count | Literal["never"] | None = None
    save_every: Count | None = None  # optimizer steps; none: no checkpoints but when told to terminate
    keep_checkpoints: Count = 2  # the last ones
    report_to: Annotated[Sequence[str], AfterValidator(tuple)] = ()  # trackers, as Trainer names them: [tensorboard]

    @model_validator(mode="after")
    def _holds_before_it_falls(self) -> Self:
        if self.decay_share != DECAY and self.learning_rate_shape != "warmup_stable_decay":
            raise ValueError(
                f"decay_share is for learning_rate_shape=warmup_stable_decay; with {self.learning_rate_shape} the rate "
                "falls from the warm-up on."
            )
        return self

    @field_validator("optimizer")
    @classmethod
    def _is_known(cls, name: str) -> str:
        known = optimizer_names()  # none where transformers' source is of another form: then Trainer itself refuses
        if known and name not in known:
            raise ValueError(f"unknown optimizer {name!r}; {nearest(name, known)}")
        return name

    @field_validator("report_to")
    @classmethod
    def _are_known(cls, names: Sequence[str]) -> Sequence[str]:
        known = tracker_names()
        for name in names:
            if known and name not in known:
                raise ValueError(f"unknown tracker {name!r}; {nearest(name, known)}")
        return names


# what a preset may have of its own beside the stages
_OF_RUNS = ("stages", "total_steps", "in_shares")  # which the length of a run says
_GROWING = ("resample_every", "kept_units", "joining_layers", "draws")


class ScheduleSettings(Settings):
    """A preset, or the stages themselves; the rest as in `Schedule`."""

    # null: compound, unless stages are given, or growing for a model that is loaded; est: the paper's; growing: a part,
    # drawn once, that grows; stacking: a part of the layers, and then copies of them; compound: with a part of heads
    # and neurons too, in two steps (for the three, resample_every is never and kept_units as_is, if they are not
    # given); dense: always whole
    preset: Literal["est", "growing", "stacking", "compound", "constant", "dense"] | None = None
    # of layers, heads and neurons, with growing of heads and neurons, with stacking of layers; null: 0.5, growing 0.25
    keep: Fraction | None = None
    stages: Annotated[Sequence[Stage], AfterValidator(tuple)] | None = None  # in place of a preset
    # how units are drawn; window: neighbours; rolling: neighbours that move on slowly; the best by
    # weighted_gradient_magnitude or weight_magnitude; or your own
    policy: PolicyName = "random"
    ranking: Literal["per_layer", "global"] = "per_layer"  # of units, by policies that rank them
    refresh_every: Count = 100  # optimizer steps after which they are ranked anew
    exploration: Share = 0.1  # of the kept units, drawn at random among those that rank lower
    cycle_steps: Count = CYCLE  # optimizer steps in which a rolling window goes round
    neurons_multiple_of: Count = 1  # kept neurons are rounded to it
    skipped_layers: Literal["identity", "inverse_keep"] = "identity"  # or the layers that run are scaled by 1/p
    draws: Literal["per_layer", "shared"] = "per_layer"  # of units: each layer its own, or all layers the same
    resample_every: Count | Literal["never"] = 1  # optimizer steps that train the same units and layers
    kept_units: Literal["scaled", "as_is"] = "scaled"  # sums over kept units: by total / kept, or as they are
    # what took no part in a step: the optimizer leaves it alone or changes it, as by weight decay; null: it leaves it
    # alone if units are drawn once, ranked or rolling
    idle_units: Literal["left_alone", "updated"] | None = None
    # layers that are never skipped, of those that can be; negative ones count from the last: [0, -1]
    always_run: Annotated[Sequence[Annotated[int, Field(strict=True)]], AfterValidator(tuple)] = ()
    # what a layer is when it joins; copies: of the nearest layer that was trained (layers are then drawn once, evenly)
    joining_layers: Literal["initialised", "copies"] = "initialised"

    @model_validator(mode="after")
    def _preset_or_stages(self) -> Self:
        if self.stages is not None and (self.preset is not None or self.keep is not None):
            raise ValueError("give either preset (and keep) or stages, not both.")
        if self.preset == "dense" and self.keep is not None:
            raise ValueError("the preset dense keeps everything; leave keep out.")
        return self

    def build(self, total_steps: int, *, loaded: bool = False) -> Schedule:
        """Returns the schedule for a run of that many steps, of a model whose weights are loaded or of a new one."""
        try:
            return self._built(total_steps, loaded)
        except ScheduleError as fault:
            if self.preset is not None or self.stages is not None:
                raise
            default = default_preset(loaded=loaded)
            raise ScheduleError(f"{fault} The schedule is {default}, the default; name another: preset=est.") from None

    def _built(self, total_steps: int, loaded: bool) -> Schedule:
        own = {name: getattr(self, name) for name in Schedule.model_fields if name not in _OF_RUNS}
        if self.stages is not None:
            stages = self.stages
        elif self.preset == "constant":
            stages = Schedule.constant(self.keep or 0.5).stages
        elif self.preset == "dense":
            stages = (Stage(start=0),)
        else:
            preset = preset_schedule(self.preset, total_steps, self.keep, loaded=loaded)
            stages = preset.stages
            own |= {name: getattr(preset, name) for name in _GROWING if name not in self.model_fields_set}
        return Schedule(stages=stages, total_steps=total_steps, **own)


class RunConfig(Settings):
    """A whole training run."""

    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    train: TrainSettings = TrainSettings()
    schedule: ScheduleSettings = ScheduleSettings()

    @classmethod
    def load(cls, path: str | Path | None = None, overrides: Sequence[str] = ()) -> Self:
        """Reads a YAML file (none: the defaults), then applies `a.b=c` overrides in order."""
        data = cls.mapping_from_yaml(path) if path is not None else {}
        for key, value in parse_options(overrides).items():
            _put(data, key, value)
        try:
            return cls.from_mapping(data)
        except cls.error as fault:
            raise cls.error(f"{path}: {fault}" if path is not None else str(fault)) from None

    @property
    def takes_default(self) -> bool:
        """Whether no schedule is named, for a model that is trained from its initialisation."""
        named = self.schedule.preset is not None or self.schedule.stages is not None
        return not named and not holds_weights(self.model.name)

    def build_schedule(self) -> Schedule:
        """The schedule of the run; which one is the default depends on whether the model is loaded."""
        return self.schedule.build(self.train.total_steps, loaded=holds_weights(self.model.name))

    def resolved(self) -> Self:
        """The same run with nothing left to presets: all model options and all stages written out."""
        from estfx.training.model_presets import small_options  # which import transformers
        from estfx.training.model_spec import merged_options, model_types
        from estfx.training.text_data import tokens_of

        config = dict(self.model.config)
        if self.model.name in model_types():
            tokens = tokens_of(self.data.tokenizer)
            small = small_options(
                self.model.name,
                vocab_size=tokens.vocab_size,
                seq_len=self.data.seq_len,
                end_of_text=tokens.end_of_text,
            )
            config = merged_options(self.model.name, small, config)
        loaded = holds_weights(self.model.name)
        schedule = {
            **self.build_schedule().model_dump(exclude={"total_steps", "in_shares"}),
            "preset": None,
            "keep": None,
        }
        model = ModelSettings(name=self.model.name, config=config)
        train = self.train
        if train.eval_every is None:
            train = train.model_copy(update={"eval_every": ceil(train.total_steps / 10)})
        if train.zero_joining is None:
            once = schedule["resample_every"] == "never" and schedule["policy"] not in SCORES
            train = train.model_copy(update={"zero_joining": once and not loaded})
        return self.model_copy(update={"model": model, "train": train, "schedule": ScheduleSettings(**schedule)})


def _put(data: dict[str, Any], dotted: str, value: object) -> None:
    *sections, last = dotted.split(".")
    place = data
    for depth, section in enumerate(sections, start=1):
        inner = place.setdefault(section, {})
        if inner is None:
            inner = place[section] = {}
        if not isinstance(inner, dict):
            raise SettingsError(f"cannot set {dotted!r}: {'.'.join(sections[:depth])!r} is {inner!r}, not a section.")
        place = inner
    place[last] = value
