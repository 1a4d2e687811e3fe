"""The texts that a run trains on: files of several kinds, a dataset, or the sources of Python's standard library."""

from __future__ import annotations

import glob
import importlib
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from estfx.settings import SettingsError, parse_json

__all__ = ["BYTES", "STANDARD_LIBRARY", "check_text", "documents", "no_block"]

BYTES = "bytes"  # as tokens
STANDARD_LIBRARY = "standard-library"
_WITH_ROWS = (".jsonl", ".ndjson", ".parquet")
_NOT_OURS = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})


def documents(sources: Sequence[str], column: str) -> Iterator[bytes]:
    """The texts of all sources, in UTF-8, empty ones left out.

    A source is `standard-library`, a file, a pattern of files (`texts/**/*.txt`), or the name of a dataset (split
    `train`). Of JSON lines (`.jsonl`), Parquet files and datasets `column` holds the text; any other file is one text.
    Raises SettingsError for a source that is not there or has no such column.
    """
    for source in sources:
        if source == STANDARD_LIBRARY:
            texts = _standard_library(Path(sysconfig.get_path("stdlib")))
        elif paths := sorted(path for path in glob.glob(source, recursive=True) if Path(path).is_file()):
            texts = (text for path in paths for text in _of_file(Path(path), column))
        else:
            texts = _of_dataset(source, column)
        yield from (text for text in texts if text)


def check_text(sources: Sequence[str], *, column: str, tokenizer: str = BYTES, seq_len: int | None = None) -> None:
    """Raises SettingsError for what can be seen to be wrong without reading all: no file, no column, no tokens."""
    if tokenizer != BYTES and not Path(tokenizer).is_dir():
        raise SettingsError(f"data.tokenizer must be `bytes` or a folder with a tokenizer; {tokenizer} is no folder.")
    sizes: list[int | None] = []  # of plain files, in bytes
    for source in sources:
        paths = [Path(path) for path in glob.glob(source, recursive=True) if Path(path).is_file()]
        if not paths and not Path(source).is_dir() and _is_file_name(source):
            raise SettingsError(_no_file(source))
        for path in paths:
            rows = path.suffix in _WITH_ROWS
            if rows and path.suffix != ".parquet":
                next(_of_json_lines(path, column), None)
            sizes.append(None if rows else path.stat().st_size + 1)  # with its end
        if not paths:
            sizes.append(None)
    known = [size for size in sizes if size is not None]
    if seq_len is not None and tokenizer == BYTES and len(known) == len(sizes) and 0 < sum(known) < seq_len:
        raise SettingsError(no_block(sum(known), seq_len))


def no_block(tokens: int, seq_len: int) -> str:
    """What is said of a text that is too short."""
    return f"a text of {tokens} tokens holds no block of {seq_len}; use a smaller data.seq_len."


def _is_file_name(source: str) -> bool:
    """Whether it can be no dataset's name."""
    return any(mark in source for mark in "*?[") or source.startswith((".", "/")) or bool(Path(source).suffix)


def _no_file(source: str) -> str:
    return f"data.source: there is no file {source}."


def _standard_library(folder: Path) -> Iterator[bytes]:
    """Its modules: no tests, no installed packages."""
    for path in folder.rglob("*.py"):
        if _NOT_OURS.isdisjoint(path.relative_to(folder).parts):
            yield path.read_bytes()


def _of_file(path: Path, column: str) -> Iterator[bytes]:
    if path.suffix in (".jsonl", ".ndjson"):
        return _of_json_lines(path, column)
    if path.suffix == ".parquet":
        return _of_parquet(path, column)
    return iter([path.read_bytes()])


def _of_json_lines(path: Path, column: str) -> Iterator[bytes]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except ValueError as error:
                raise SettingsError(f"{path}, line {number}: this is not JSON: {error}.") from None
            if not isinstance(row, dict) or not isinstance(row.get(column), str):
                has = f"its keys are {', '.join(row)}" if isinstance(row, dict) else f"it is a {type(row).__name__}"
                raise SettingsError(f"{path}, line {number}: no text under {column!r}; {has}. Set data.column.")
            yield row[column].encode()


def _of_parquet(path: Path, column: str) -> Iterator[bytes]:
    parquet = _package("pyarrow.parquet", "pyarrow", f"to read {path}")
    file = parquet.ParquetFile(path)
    names = file.schema_arrow.names
    if column not in names:
        raise SettingsError(f"{path} has no column {column!r}; it has {', '.join(names)}. Set data.column.")
    for batch in file.iter_batches(columns=[column]):
        for value in batch.column(0).to_pylist():
            yield (value or "").encode()


def _of_dataset(name: str, column: str) -> Iterator[bytes]:
    local = Path(name).is_dir()
    if not local and _is_file_name(name):
        raise SettingsError(_no_file(name))
    datasets = _package("datasets", "datasets", f"to look for a dataset {name!r} (there is no such file)")
    try:
        found: Any = datasets.load_from_disk(name) if local else datasets.load_dataset(name, split="train")
    except Exception as error:  # whatever the hub, the network or the folder come up with
        raise SettingsError(f"data.source: {name!r} cannot be loaded as a dataset: {error}") from None
    if isinstance(found, dict):
        if "train" not in found:
            raise SettingsError(f"{name} has no split train; it has {', '.join(found)}. Save that split by itself.")
        found = found["train"]
    if column not in found.column_names:
        raise SettingsError(
            f"{name} has no column {column!r}; it has {', '.join(found.column_names)}. Set data.column."
        )
    return ((row[column] or "").encode() for row in found)


def _package(module: str, name: str, what_for: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise SettingsError(f"{what_for}, the package {name} is needed: pip install {name}.") from None
