"""A cut that the model's own class builds from a configuration: an ordinary checkpoint."""

from __future__ import annotations

import copy
import logging
import sys
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from estfx.cutting.config_search import ConfigCandidate, Depth, configurations
from estfx.cutting.cut_task import CutTask
from estfx.cutting.layer_trial import LayerTrial

__all__ = ["cut_by_configuration"]

log = logging.getLogger(__name__)


def cut_by_configuration(task: CutTask) -> tuple[nn.Module, ConfigCandidate, float] | None:
    """The first cut that is built from a configuration and computes what the masked whole does, and its error.

    None if there is no such configuration. On the meta device there is nothing to be computed, and the error is -1.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in task.state.items()}
    depths = [Depth(whole, left) for whole, left in task.places.values()]
    for candidate in configurations(task.model, shapes, task.sizes, depths, task.unit_sizes):
        made = _built(task, candidate.config)
        if made is None:
            continue
        if task.on_meta:
            return made, candidate, -1.0
        error = task.error(made)
        if error <= task.tolerance and _layers_fit(task, made):
            return made, candidate, error
    return None


def _built(task: CutTask, config: Any) -> nn.Module | None:
    """A model of the configuration with the cut's weights, each of them a tensor of its own."""
    device = next((p.device for p in task.model.parameters()), torch.device("cpu"))
    own: dict[int, torch.Tensor] = {}
    for tensor in task.state.values():
        value = tensor.detach().clone()
        is_parameter = isinstance(tensor, nn.Parameter)
        own[id(tensor)] = nn.Parameter(value, requires_grad=tensor.requires_grad) if is_parameter else value
    try:
        with _no_initial_values(), torch.device(device):
            made = type(task.model)(config)
        made.load_state_dict({name: own[id(tensor)] for name, tensor in task.state.items()}, assign=True)
    except Exception:  # whatever the model's own code raises
        log.debug("no model could be built of a configuration", exc_info=True)
        return None
    if hasattr(task.model, "generation_config"):
        made.generation_config = copy.deepcopy(task.model.generation_config)
    return made


def _layers_fit(task: CutTask, made: nn.Module) -> bool:
    """Whether each kind of layer does, in float64, what its graph says."""
    seen = set()
    for part in task.modules:
        if part.key in seen:
            continue
        seen.add(part.key)
        layer = copy.deepcopy(made.get_submodule(task.path_in_cut(part))).double()
        trial = LayerTrial(task.model, part)
        try:
            with torch.no_grad():
                if not trial.fits(trial.run(layer)):
                    return False
        except Exception:  # whatever the model's own code raises
            log.debug("a candidate's layer does not run", exc_info=True)
            return False
    return True


def _no_initial_values() -> Any:
    """While it lasts, transformers leaves weights as they are allocated: they are given theirs anyway."""
    module = sys.modules.get("transformers.initialization")
    return module.no_init_weights() if module is not None else nullcontext()
