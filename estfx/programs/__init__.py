"""From a kind of layer to programs: analysed, narrowed for a stage, compiled, verified.

In goes a traced layer; out comes a `Variant` of it, with a compiled `Program` for each number of units that is kept.
"""

from estfx.programs.compilation import Compiler, compiler_of, load_compiled, save_compiled
from estfx.programs.layer_kind import Kind
from estfx.programs.program import Counts, Program, Variant, analysed, numbers_at_work, resolve
from estfx.programs.relative_errors import direction
from estfx.programs.stage_counts import possible_counts, stage_counts
from estfx.programs.verification import ROUNDS, verify_kind

__all__ = [
    "ROUNDS",
    "Compiler",
    "Counts",
    "Kind",
    "Program",
    "Variant",
    "analysed",
    "compiler_of",
    "direction",
    "load_compiled",
    "numbers_at_work",
    "possible_counts",
    "resolve",
    "save_compiled",
    "stage_counts",
    "verify_kind",
]
