"""The folder of a training run: metrics as JSON lines, the resolved configuration, the environment, the summary."""

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from estfx.settings import Settings, SettingsError

__all__ = ["RunFolder", "environment"]

_PACKAGES = ("estfx", "torch", "transformers", "accelerate", "numpy")


class RunFolder:
    """A new folder, written to as the run goes; each line of metrics is on disk when it is written."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # exclusive: two runs in one folder would mix their metrics
            self._metrics = (self.path / "metrics.jsonl").open("x", encoding="utf-8")
        except FileExistsError:
            raise SettingsError(f"{self.path} is a file or already holds a run; choose another --out.") from None
        except OSError as error:
            raise SettingsError(
                f"cannot write to the folder {self.path}: {error.strerror}; choose another --out."
            ) from None

    @property
    def model(self) -> Path:
        """Where the checkpoint goes."""
        return self.path / "model"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._metrics.close()
        metrics = self.path / "metrics.jsonl"
        if metrics.stat().st_size == 0:  # nothing was run, so the folder may be used again
            metrics.unlink()

    def write_metrics(self, line: Mapping[str, Any]) -> None:
        """Adds one line to metrics.jsonl."""
        self._metrics.write(json.dumps(line) + "\n")
        self._metrics.flush()

    def write_config(self, config: Settings) -> None:
        """Writes config.yaml."""
        config.to_yaml(self.path / "config.yaml")

    def write_environment(self) -> None:
        """Writes environment.json: versions and hardware, nothing about who ran it or where."""
        self._write_json("environment.json", environment())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json."""
        self._write_json("summary.json", summary)

    def _write_json(self, name: str, data: Mapping[str, Any]) -> None:
        (self.path / name).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def environment() -> dict[str, Any]:
    """Versions and the kind of hardware."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in _PACKAGES},
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "accelerators": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a bare checkout
        return None
