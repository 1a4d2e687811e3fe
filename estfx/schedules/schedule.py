"""Schedules: which part of the model is trained at which step."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NoReturn, Self

from pydantic import AfterValidator, Field, model_validator

from estfx.errors import EstfxError, ScheduleError
from estfx.schedules.draws import CYCLE, SCORES, PolicyName
from estfx.schedules.presets import SHARES, est_stages, growing_stages, stages_over
from estfx.schedules.shown_stages import stages_blocks, stages_chart
from estfx.schedules.stage import Count, Share, Stage, checked_step, checked_total, kept_count
from estfx.schedules.stage_order import check_copies, check_order
from estfx.settings import Settings
from estfx.showing import Block, Shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Schedule"]


class Schedule(Shown, Settings):
    """The stages of a training run, from the first step to the last.

    `policy` says which units a draw keeps: `random` ones (EST), a `window`, one contiguous run of them, a `rolling`
    window, which moves on slowly and goes round in `cycle_steps` optimizer steps, or what a policy of one's own says
    (`estfx.selection_policy`). Two rank units by a score and keep the best, in each layer, or
    of all layers together (`ranking`, with three widths of layers): `weighted_gradient_magnitude` by the running mean
    of |weight · gradient|, `weight_magnitude` by the weights. They rank anew every `refresh_every` optimizer steps and
    at the beginning of each stage; the share `exploration` of what is kept is drawn at random among the other units, so
    that those are trained and scored too. Until there is a score, as at the beginning, all are drawn at random.

    `draws` says whether each layer keeps units of its own, or all layers (of one size) the same ones; a draw serves
    `resample_every` optimizer steps. With `never` one draw serves the whole run: by `random`, a later stage keeps what
    an earlier one kept, and more, so that a part is trained that grows. `kept_units` says whether sums over kept units
    are scaled by total / kept, which EST calls crucial, or taken as they are. Layers in `always_run`, counted among
    those that can be skipped and, if negative, from the last, are never skipped; the others are then skipped more
    often, as the number of layers that run stays what the stage says.

    `idle_units` says whether optimizers may change units that took no part in a step, whose gradients are zeros: by
    weight decay and old momentum (`updated`), or not at all (`left_alone`). Units that stay out for thousands of steps
    and are decayed all the while are nearly zero when they join, and may stay so. By default they are left alone if
    the part is drawn once, by a policy that ranks or by a rolling window. A skipped layer has no gradient and is left
    alone in any case.

    `joining_layers` says what a layer is when it joins: as it was initialised, or one of `copies`. Layers are then not
    drawn: those that run are spread evenly, and every other one follows the nearest before it that runs and has tensors
    of the same sizes. After each step of an optimizer (of `torch.optim`) it is given its weights, buffers and running
    means, so that a trained layer joins, beside the one that it is a copy of. What an idle layer held before is lost.

    `skipped_layers` says what a kept layer adds to the residual stream while others are skipped: with `identity` its
    update as it is (the paper names no factor), with `inverse_keep` its update divided by the stage's layers
    fraction, so that the expected sum of all updates stays that of the whole model.
    """

    error: ClassVar[type[EstfxError]] = ScheduleError

    stages: Annotated[Sequence[Stage], AfterValidator(tuple)]  # in order of their starts; the first starts at step 0
    total_steps: Count | None = None  # optimizer steps of the run; the last stage ends there
    policy: PolicyName = "random"  # which units a draw keeps
    neurons_multiple_of: Count = 1  # kept neurons are rounded to it, for hardware that likes multiples
    skipped_layers: Literal["identity", "inverse_keep"] = "identity"  # what a kept layer adds while others are skipped
    ranking: Literal["per_layer", "global"] = "per_layer"  # of units, by policies that rank them
    refresh_every: Count = 100  # optimizer steps after which they are ranked anew
    exploration: Share = 0.1  # of the kept units, drawn at random among those that rank lower
    cycle_steps: Count = CYCLE  # optimizer steps in which a rolling window goes round
    draws: Literal["per_layer", "shared"] = "per_layer"  # of units: each layer its own, or all the same
    resample_every: Count | Literal["never"] = 1  # optimizer steps that train the same units and layers
    kept_units: Literal["scaled", "as_is"] = "scaled"  # sums over kept units: by total / kept, or as they are
    # what took no part in a step: optimizers leave it alone or change it, as by weight decay; null: they leave it alone
    # if units are drawn once, ranked or rolling, and so stay out for long
    idle_units: Literal["left_alone", "updated"] | None = None
    # layers that are never skipped, of those that can be; negative ones count from the last: [0, -1]
    always_run: Annotated[Sequence[Annotated[int, Field(strict=True)]], AfterValidator(tuple)] = ()
    # what a layer is when it joins: as it was initialised, or a copy of a layer that was trained
    joining_layers: Literal["initialised", "copies"] = "initialised"
    # whether starts and total_steps stand for shares of a run whose length is not known yet; see `over`
    in_shares: bool = Field(default=False, strict=True)

    @model_validator(mode="after")
    def _stages_are_in_order(self) -> Self:
        check_order(self.stages, self.total_steps)
        if self.copies_layers:
            if self.policy in SCORES:
                raise ValueError(
                    "joining_layers=copies is for policies that rank nothing, since a copy would be ranked by what it "
                    f"was before; got policy={self.policy}."
                )
            check_copies(self.stages, shared=self.draws == "shared")
        return self

    @model_validator(mode="after")
    def _policy_is_told_what_it_knows(self) -> Self:
        if self.policy == "rolling" and self.resample_every == "never":
            raise ValueError("a rolling window would stand still with resample_every=never; set resample_every=1.")
        if self.policy in ("random", "window", *SCORES) and self.cycle_steps != CYCLE:
            raise ValueError(f"cycle_steps is for the policy rolling; the policy {self.policy} does not go round.")
        if self.policy not in SCORES:
            for name in ("ranking", "refresh_every", "exploration"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(
                        f"{name} is for policies that rank units ({', '.join(SCORES)}); the policy {self.policy} ranks "
                        "none."
                    )
        elif self.ranking == "global" and self.draws == "shared":
            raise ValueError("ranking=global gives layers widths of their own; with draws=shared all keep the same.")
        return self

    @property
    def copies_layers(self) -> bool:
        """Whether layers that are not at work follow those that are."""
        return self.joining_layers == "copies"

    @property
    def leaves_idle_alone(self) -> bool:
        """Whether optimizers leave alone what took no part in a step."""
        if self.idle_units is None:
            return self.resample_every == "never" or self.policy in (*SCORES, "rolling")
        return self.idle_units == "left_alone"

    @classmethod
    def est(cls, total_steps: int | None = None, keep: float = 0.5) -> Self:
        """The paper's three stages: all sampled, then all layers, then the whole model (arXiv 2406.06962).

        The boundaries lie at 20/150 and 70/150 of the run. At `keep=0.5` that saves 26.67 % of the layers' FLOPs.
        Without `total_steps` they are shares of a run whose length a trainer will know, as with all presets: `over`.
        """
        total = SHARES if total_steps is None else checked_total(total_steps)
        return cls(stages=est_stages(total, keep), total_steps=total, in_shares=total_steps is None)

    @classmethod
    def constant(cls, keep: float, total_steps: int | None = None) -> Self:
        """One stage with one keep fraction for heads, neurons and layers: the control at equal FLOPs."""
        total = None if total_steps is None else checked_total(total_steps)
        return cls(stages=(Stage(start=0, heads=keep, neurons=keep, layers=keep),), total_steps=total)

    @classmethod
    def growing(
        cls,
        total_steps: int | None = None,
        *,
        heads: float = 0.25,
        neurons: float = 0.25,
        layers: float = 1.0,
        curve: Literal["linear", "cosine", "cubic"] = "linear",
        num_stages: int = 1,
        whole_until: float = 0.0,
        whole_from: float = 0.35,
        resample_every: int | Literal["never"] = "never",
        kept_units: Literal["scaled", "as_is"] = "as_is",
    ) -> Self:
        """A part that grows from the fractions given here to the whole model; by default it is drawn once.

        So a small network is trained, which becomes a larger one: units and layers that join have the weights of their
        initialisation, and the sums over units are not scaled, so that little changes when they do. With
        `resample_every=1, kept_units="scaled"` it is drawn anew at every step, as EST does.

        Of the run, up to `whole_until` the whole model is trained (a warm-up; a share of `total_steps`), and from
        `whole_from` on again. Between them lie `num_stages` stages of equal length, whose fractions rise along
        `curve`: evenly; slowly at both ends; or fast at first and then ever more slowly (cubic). Few stages mean few
        compilations: each has programs of its own. A fraction of 1 is kept whole all along, so that only depth grows
        (`heads=1, neurons=1`), or only width (`layers=1`).

        Raises ScheduleError if the steps are too few for the stages, or a value cannot be.
        """
        total = SHARES if total_steps is None else checked_total(total_steps)
        stages = growing_stages(
            total,
            {"heads": heads, "neurons": neurons, "layers": layers},
            curve=curve,
            num_stages=num_stages,
            whole_until=whole_until,
            whole_from=whole_from,
        )
        return cls(
            stages=stages,
            total_steps=total,
            resample_every=resample_every,
            kept_units=kept_units,
            in_shares=total_steps is None,
        )

    @classmethod
    def stacking(
        cls,
        total_steps: int | None = None,
        *,
        layers: float = 0.5,
        heads: float = 1.0,
        neurons: float = 1.0,
        num_stages: int = 1,
        whole_from: float = 0.55,
    ) -> Self:
        """A shallow model that becomes a deep one: layers join as copies of those that were trained, beside them.

        From `whole_from` on (a share of `total_steps`) the whole model is trained; before lie `num_stages` stages of
        equal length, the first with the fraction `layers` of the layers, evenly spread, the others with ever more.
        A layer that joins has the weights of the nearest one before it, and the optimizer's running means
        (`joining_layers="copies"`). Heads and neurons are whole all along, unless their fractions say that they grow
        too; with several stages all layers then keep the same ones (`draws="shared"`).

        For a model that is trained from its initialisation: what a trained model holds in its other layers is lost.
        Raises ScheduleError if the steps are too few for the stages, or a value cannot be.

        Source: progressive stacking (Gong et al., ICML 2019), with copies beside their sources.
        """
        growing = cls.growing(
            total_steps, heads=heads, neurons=neurons, layers=layers, num_stages=num_stages, whole_from=whole_from
        )
        shared = num_stages > 1 and min(heads, neurons) < 1  # layers then join with a part of their units
        copies = {"joining_layers": "copies", "draws": "shared" if shared else "per_layer"}
        return growing.model_copy(update=copies)

    @classmethod
    def compound(
        cls, total_steps: int | None = None, *, keep: float = 0.5, num_stages: int = 2, whole_from: float = 0.45
    ) -> Self:
        """A model that is shallow and narrow at first, and then whole: `stacking` of layers whose units grow, too.

        `keep` is the fraction of layers, of heads and of neurons, with which a step costs about `keep ** 2` of the
        layers' FLOPs; in `num_stages` stages of equal length it rises evenly, by default to three quarters. So a
        quarter of the FLOPs is saved; with a single stage that is so at `whole_from=0.36`.

        For a model that is trained from its initialisation, as `stacking` is. Raises ScheduleError if the steps are too
        few, or a value cannot be.

        Source: compound growth (Gu et al., NAACL 2021).
        """
        return cls.stacking(
            total_steps, layers=keep, heads=keep, neurons=keep, num_stages=num_stages, whole_from=whole_from
        )

    @classmethod
    def for_saving(cls, *args: object, **kwargs: object) -> NoReturn:
        """Is `estfx.schedule_for_saving` now, since it looks at a model. Raises ScheduleError, which says so."""
        raise ScheduleError(
            "Schedule.for_saving is now estfx.schedule_for_saving, with the same arguments: "
            "estfx.schedule_for_saving(model, 0.25, total_steps=10_000)."
        )

    def over(self, total_steps: int) -> Self:
        """The schedule of a run of so many steps, of one that was made without: `Schedule.est().over(1_000)`.

        Raises ScheduleError if it is made for a number of steps already, or these are too few for its stages.
        """
        if not self.in_shares or self.total_steps is None:
            raise ScheduleError(f"this schedule is made for {self.total_steps} steps already, not for shares of a run.")
        stages = stages_over(self.stages, self.total_steps, checked_total(total_steps))
        return self.model_copy(update={"stages": stages, "total_steps": total_steps, "in_shares": False})

    @property
    def scales(self) -> bool:
        """Whether sums over kept units are scaled."""
        return self.kept_units == "scaled"

    def layers_kept(self, stage: Stage, num_layers: int) -> int:
        """How many of `num_layers` layers that can be skipped run at a step of a stage."""
        return max(kept_count(num_layers, stage.layers), len(self.layers_always_run(num_layers))) if num_layers else 0

    def layers_always_run(self, num_layers: int) -> tuple[int, ...]:
        """Which of `num_layers` layers that can be skipped never are. Raises ScheduleError if one is not there."""
        for index in self.always_run if num_layers else ():
            if not -num_layers <= index < num_layers:
                raise ScheduleError(
                    f"always_run names layer {index}, but there are {num_layers} layers that can be skipped: 0 to "
                    f"{num_layers - 1}, or from the last {-num_layers} to -1."
                )
        return tuple(sorted({index % num_layers for index in self.always_run})) if num_layers else ()

    def drawn_at(self, step: int) -> int:
        """The first of the steps that share the draw of `step`."""
        return 0 if self.resample_every == "never" else step - step % self.resample_every

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draws what is kept over the steps, as a figure of matplotlib; writes it to `path`, if one is given.

        Raises SettingsError if matplotlib is missing or the file cannot be written, ScheduleError without total_steps.
        """
        return stages_chart(self.stages, self.total_steps, path, in_shares=self.in_shares)

    def _blocks(self) -> Iterator[Block]:
        return stages_blocks(self.stages, self.total_steps, self.resample_every, in_shares=self.in_shares)

    def stage_at(self, step: int) -> tuple[int, Stage]:
        """Returns the index (from 0) of the stage in force at `step`, and the stage.

        The last stage has no end: it is in force at and after `total_steps` too.
        Raises ScheduleError for a step that is negative or no whole number.
        """
        index = bisect_right(self.stages, checked_step(step), key=lambda stage: stage.start) - 1
        return index, self.stages[index]
