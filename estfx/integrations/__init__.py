"""Callbacks for other people's trainers, a file for each library, a hook for DDP, and states for optimizers.

In goes a trainer's own event; out comes the step that the model is set to.
"""

from estfx.integrations.data_parallel import ddp_hook
from estfx.integrations.optimizer_states import initialise_optimizer

__all__ = ["ddp_hook", "initialise_optimizer"]
