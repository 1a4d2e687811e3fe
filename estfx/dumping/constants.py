"""Constant tensors of a graph as text."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Sequence

import numpy as np
import torch

__all__ = ["packed", "unpacked"]


def packed(tensor: torch.Tensor) -> str:
    """The tensor's bytes, little-endian and in C order, compressed with zlib, in base64."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return base64.b64encode(zlib.compress(flat.view(torch.uint8).numpy().tobytes(), 9)).decode()


def unpacked(data: str, dtype: str, shape: Sequence[int]) -> torch.Tensor:
    """The tensor that `packed` made text of; `dtype` as torch calls it (`float32`)."""
    kind: torch.dtype = getattr(torch, dtype)
    held = np.frombuffer(bytearray(zlib.decompress(base64.b64decode(data))), dtype=np.uint8)
    if math.prod(shape) == 0:
        return torch.empty(tuple(shape), dtype=kind)
    return torch.from_numpy(held).view(kind).reshape(tuple(shape))
