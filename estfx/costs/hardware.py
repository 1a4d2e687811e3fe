"""How fast accelerators are, and how long a number of FLOPs takes on them."""

from __future__ import annotations

from estfx.settings import SettingsError, nearest

__all__ = ["PEAKS", "hours", "peak_of"]

# Dense bfloat16 FLOPs per second, as their makers state them (NVIDIA and AMD data sheets), by a part of the name.
PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "MI300X": 1307e12,
}


def peak_of(name: str) -> tuple[str, float]:
    """An accelerator's full name and its peak. Case does not matter, and a dash may stand for a space: `h100-pcie`."""
    wanted = name.replace("-", " ").lower()
    for known, peak in PEAKS.items():
        if known.lower() == wanted:
            return known, peak
    names = [known.lower().replace(" ", "-") for known in PEAKS]
    raise SettingsError(f"unknown hardware {name!r}; {nearest(name.lower(), names)}")


def hours(flops: float, peak: float, mfu: float, num_devices: int) -> float:
    """How long that many FLOPs take at a share of the devices' peak."""
    return flops / (peak * mfu * num_devices) / 3600
