"""The folder of a training run: metrics as JSON lines, the resolved configuration, the environment, the summary."""

import json
import os
import platform
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from estfx.settings import Settings, SettingsError, parse_json

__all__ = ["RunFolder", "default_folder", "environment"]

_PACKAGES = ("estfx", "torch", "transformers", "accelerate", "numpy")


class RunFolder:
    """A new folder, written to as the run goes; each line of metrics is on disk when it is written.

    Until `begin` nothing is written, and if the run ends before its first step, nothing is left. With `resume` it is a
    folder that holds a run. With `writes=False`, as on all ranks but the first, nothing is written.
    """

    def __init__(self, path: str | Path, *, resume: bool = False, writes: bool = True) -> None:
        self.path = Path(path)
        self.writes = writes
        self._resume = resume
        self._metrics: TextIO | None = None
        self._made: list[Path] = []  # files and folders that were not there before
        if self.path.exists() and not self.path.is_dir():
            raise SettingsError(f"{self.path} is a file; choose another --out.")
        if resume and not self.config.exists():
            raise SettingsError(f"{self.path} holds no run to be resumed: there is no {self.config.name} in it.")
        if writes and not resume and self._lines.exists():
            raise SettingsError(self._holds_a_run())
        nearest = next(each for each in (self.path, *self.path.absolute().parents) if each.exists())
        if writes and (why := _why_unwritable(nearest)):
            raise SettingsError(f"cannot write to the folder {self.path}: {nearest} {why}; choose another --out.")

    def begin(self) -> None:
        """Makes the folder. Raises SettingsError if that cannot be, or if it holds a run by now."""
        if not self.writes:
            return
        missing = [each for each in (self.path, *self.path.parents) if not each.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # exclusive: two runs in one folder would mix their metrics
            self._metrics = self._lines.open("a" if self._resume else "x", encoding="utf-8")
        except FileExistsError:
            raise SettingsError(self._holds_a_run()) from None
        except OSError as error:
            raise SettingsError(
                f"cannot write to the folder {self.path}: {error.strerror}; choose another --out."
            ) from None
        if not self._resume:
            self._made = [self._lines, *missing]

    def _holds_a_run(self) -> str:
        return f"{self.path} holds a run; choose another --out, or go on with it by --resume."

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def _lines(self) -> Path:
        return self.path / "metrics.jsonl"

    def is_finished(self) -> bool:
        return (self.path / "summary.json").exists()

    def held_out(self) -> dict[int, float]:
        """The held-out losses by the number of steps after which they were taken, in order."""
        return {line["step"]: line["held_out_loss"] for line in self.metrics() if line["kind"] == "eval"}

    def metrics(self) -> list[dict[str, Any]]:
        """The lines so far. A last one that is not whole, of a run that was killed, is left out."""
        lines = []
        for line in self._lines.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(parse_json(line))
            except ValueError:
                break
        return lines

    def go_back_to(self, step: int) -> None:
        """Leaves out of the metrics what came after a number of steps: it is computed again."""
        if not self.writes:
            return
        kept = [line for line in self.metrics() if line["step"] < step + (line["kind"] == "eval" and step > 0)]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        assert self._metrics is not None
        self._metrics.close()
        self._replace(self._lines, text)
        self._metrics = self._lines.open("a", encoding="utf-8")

    @property
    def model(self) -> Path:
        """Where the checkpoint goes."""
        return self.path / "model"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._metrics is None:
            return
        self._metrics.close()
        with suppress(OSError):  # there are some in it, or there is none
            self.checkpoints.rmdir()
        if self._lines.stat().st_size == 0:  # nothing was run: all is as it was before
            for made in self._made:
                with suppress(OSError):  # somebody else has put something into the folder
                    made.rmdir() if made.is_dir() else made.unlink()

    def write_metrics(self, line: Mapping[str, Any]) -> None:
        """Adds one line to metrics.jsonl."""
        if self._metrics is not None:
            self._metrics.write(json.dumps(line) + "\n")
            self._metrics.flush()

    def write_config(self, config: Settings) -> None:
        """Writes config.yaml."""
        self._replace(self.config, config.to_yaml())

    def write_environment(self) -> None:
        """Writes environment.json: versions and hardware, nothing about who ran it or where."""
        self._write_json("environment.json", environment())

    def write_made_with(self, made_with: Mapping[str, Any]) -> None:
        """Writes made_with.json: all that the draws of subnetworks depend on."""
        self._write_json("made_with.json", made_with)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json."""
        self._write_json("summary.json", summary)

    def _write_json(self, name: str, data: Mapping[str, Any]) -> None:
        self._replace(self.path / name, json.dumps(data, indent=2) + "\n")

    def _replace(self, path: Path, text: str) -> None:
        """Writes a file in one piece: a run that is killed leaves it whole, or as it was."""
        if self.writes:
            if not path.exists() and not self._resume:
                self._made.insert(0, path)
            aside = path.with_name(f"{path.name}.unfinished")
            aside.write_text(text, encoding="utf-8")
            aside.replace(path)


def default_folder(model_name: str) -> Path:
    """`runs/<model>-<time>`, below the current folder."""
    return Path("runs") / f"{Path(model_name.partition(':')[0]).stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def environment() -> dict[str, Any]:
    """Versions and the kind of hardware."""
    import torch  # which takes seconds, and most of this file does without

    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in _PACKAGES},
        "cpu_count": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),  # AVX2, AVX512: steps differ by more than half
        "torch_threads": torch.get_num_threads(),
        "accelerators": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a bare checkout
        return None


def _why_unwritable(folder: Path) -> str:
    """What keeps folders from being made in one, or nothing; permissions alone do not tell, as of /proc."""
    if not folder.is_dir():
        return "is a file"
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".estfx-", dir=folder))
    except OSError as error:
        return f"may not be written to ({error.strerror})"
    return ""
