"""What a measurement found."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from estfx.bench.settings import BenchSettings
from estfx.errors import EstfxError
from estfx.settings import SettingsError

__all__ = ["ArmResult", "BenchFailedError", "BenchResult", "Spread", "mfu_measured"]


class BenchFailedError(EstfxError):
    """A measurement that came to nothing."""

    exit_status = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Spread(_Frozen):
    """A figure over the rounds."""

    median: float
    low: float  # smallest
    high: float  # largest


class ArmResult(_Frozen):
    """One arm. Seconds are of one optimizer step on one batch."""

    name: str
    failed: str | None = None  # why there are no figures
    seconds: Spread | None = None
    forward: Spread | None = None
    backward: Spread | None = None
    optimizer: Spread | None = None
    time_ratio: Spread | None = None  # to the compiled original's seconds of the same round
    flops: float | None = None  # of the whole model, forward and backward; recomputation is no work
    flops_ratio: float | None = None  # to the original's
    time_per_flops: float | None = None  # the time ratio over the FLOPs ratio: 1 if all that is saved is time
    tokens_per_second: float | None = None
    mfu: float | None = None  # FLOPs over seconds and the device's peak
    peak_bytes: int | None = None  # over what parameters and the optimizer's states take
    saved_bytes: int | None = None  # by the forward pass for the backward pass
    compile_seconds: float | None = None  # how much longer the first steps took
    compilations: int | None = None  # graphs made by torch.compile in the first steps
    compilations_later: int | None = None  # and after them


class BenchResult(_Frozen):
    """All arms, with what they were measured on."""

    settings: BenchSettings
    environment: dict[str, Any]
    parameters: int
    peak_flops: float  # per second
    peak_flops_source: str
    arms: list[ArmResult]


def mfu_measured(path: Path) -> tuple[float, str]:
    """The MFU of the compiled original in a file of `estfx bench --out`, and where it is from."""
    try:
        result = BenchResult.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}.") from None
    except ValidationError:
        raise SettingsError(f"{path} is not what `estfx bench --out` writes.") from None
    original = next((arm for arm in result.arms if arm.flops_ratio == 1.0 and arm.mfu is not None), None)
    if original is None or original.mfu is None:
        raise SettingsError(f"{path} holds no MFU of the whole model.")
    where = ", ".join(result.environment.get("accelerators") or ["CPU"])
    return original.mfu, f"measured on {where} ({path.name})"
