"""Two models of one family as one: the first layers of the small one, a map, and the last layers of the large one.

In go two decoders and text; out comes a `Stitched` model with a palette of sizes between the two.
"""

from estfx.stitching.palette import Palette
from estfx.stitching.stitch_models import stitch
from estfx.stitching.stitched import Stitched

__all__ = ["Palette", "Stitched", "stitch"]
