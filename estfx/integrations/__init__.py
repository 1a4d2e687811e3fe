"""Callbacks for other people's trainers, a file for each library, and a hook for DDP.

In goes a trainer's own event; out comes the step that the model is set to.
"""

from estfx.integrations.data_parallel import ddp_hook

__all__ = ["ddp_hook"]
