"""How much each unit and each layer of a model matters: by its weights, its gradients, or what flows through it.

In go a model and batches of calibration text; out come `Scores`, from which the best part of any size can be taken.
"""

from estfx.scoring.closing_inputs import ClosingInputs, closing_inputs
from estfx.scoring.layer_forwards import LayerForward, layer_forwards, passing
from estfx.scoring.score_model import loss_gradients, loss_of, score
from estfx.scoring.scores import Scores

__all__ = [
    "ClosingInputs",
    "LayerForward",
    "Scores",
    "closing_inputs",
    "layer_forwards",
    "loss_gradients",
    "loss_of",
    "passing",
    "score",
]
