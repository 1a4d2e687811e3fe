"""Layers are mounted: all of them or none, and only those with which the whole model does what the original does.

In go a model, its layers and their variants; out comes the runtime of the model, now an evolving one.
"""

from estfx.mounting.all_or_none import Found, mount_all, unmount_all, verified

__all__ = ["Found", "mount_all", "unmount_all", "verified"]
