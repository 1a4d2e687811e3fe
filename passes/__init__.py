"""The passes, one to a file, and the only place that knows their order."""

from collections.abc import Mapping

from estfx.graphs import Axis, Pass
from estfx.passes.drop_noise import DropNoise
from estfx.passes.find_attention import FindAttention
from estfx.passes.find_axes import FindAxes
from estfx.passes.find_channels import FindChannels
from estfx.passes.find_mlp import FindMlp
from estfx.passes.find_residuals import FindResiduals
from estfx.passes.find_separate_heads import FindSeparateHeads
from estfx.passes.narrow_axes import NarrowAxes
from estfx.passes.scale_contractions import ScaleContractions

__all__ = ["analysis", "specialisation"]


def analysis() -> tuple[Pass, ...]:
    return (
        DropNoise(),  # assertions, whole slices; first, so that no rule meets them
        FindSeparateHeads(),  # puts SeparateHeads
        FindAxes(),  # puts Axes on every value
        FindResiduals(),  # puts Residuals; needs Axes
        FindAttention(),  # puts Roles with the heads; needs Axes
        FindChannels(),  # adds the channels of other mixers to Roles
        FindMlp(),  # adds the neurons: what is left; needs the cores
    )


def specialisation(kept: Mapping[Axis, int], *, scaled: bool = True) -> tuple[Pass, ...]:
    return (
        NarrowAxes(kept),  # takes the kept units, computes sizes again, puts Indices
        *((ScaleContractions(),) if scaled else ()),  # needs the counts in Indices
    )
