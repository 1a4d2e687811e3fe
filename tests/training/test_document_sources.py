"""Texts come from files of several kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet as parquet
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from estfx.settings import SettingsError
from estfx.training.document_sources import documents
from estfx.training.text_data import tokens_of


def test_text_files_by_name_and_by_pattern(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "one.txt").write_text("one")
    (tmp_path / "deep" / "er" / "two.txt").write_text("zwölf")
    (tmp_path / "deep" / "empty.txt").write_text("")
    assert list(documents([str(tmp_path / "one.txt")], "text")) == [b"one"]
    found = list(documents([str(tmp_path / "**" / "*.txt")], "text"))
    assert sorted(found) == [b"one", "zwölf".encode()]


def test_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(json.dumps({"id": i, "body": f"text {i}"}) for i in range(3)) + "\n\n")
    assert list(documents([str(file)], "body")) == [b"text 0", b"text 1", b"text 2"]
    with pytest.raises(SettingsError, match=r"line 1: no text under 'text'; its keys are id, body\. Set data\.column"):
        list(documents([str(file)], "text"))
    file.write_text('{"body": "good"}\n{"body": \n')
    with pytest.raises(SettingsError, match="line 2: this is not JSON"):
        list(documents([str(file)], "body"))


def test_parquet(tmp_path: Path) -> None:
    file = tmp_path / "texts.parquet"
    parquet.write_table(pyarrow.table({"text": ["one", None, "two"], "n": [1, 2, 3]}), file)
    assert list(documents([str(file)], "text")) == [b"one", b"two"]
    with pytest.raises(SettingsError, match="has no column 'body'; it has text, n"):
        list(documents([str(file)], "body"))


def test_a_dataset_on_disk(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["one", "two"]}).save_to_disk(tmp_path / "saved")
    assert list(documents([str(tmp_path / "saved")], "text")) == [b"one", b"two"]
    with pytest.raises(SettingsError, match="has no column 'body'; it has text"):
        list(documents([str(tmp_path / "saved")], "body"))


def test_splits_of_a_dataset_on_disk(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": ["one"]})
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "both")
    assert list(documents([str(tmp_path / "both")], "text")) == [b"one"]
    datasets.DatasetDict({"test": rows}).save_to_disk(tmp_path / "test")
    with pytest.raises(SettingsError, match="has no split train; it has test"):
        list(documents([str(tmp_path / "test")], "text"))


def test_a_folder_without_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be loaded as a dataset"):
        list(documents([str(tmp_path)], "text"))


@pytest.mark.parametrize("source", ["/none/there.txt", "none/*.txt", "there.jsonl"])
def test_a_file_that_is_not_there(source: str) -> None:
    with pytest.raises(SettingsError, match=r"data\.source: there is no file"):
        list(documents([source], "text"))


def test_a_package_that_is_needed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(SettingsError, match="the package datasets is needed: pip install datasets"):
        list(documents(["somebody/texts"], "text"))


def write_tokenizer(folder: Path, **options: Any) -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2, "<end>": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", **options).save_pretrained(folder)


def test_a_tokenizer_of_ones_own(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, eos_token="<end>")
    tokens = tokens_of(str(tmp_path))
    assert (tokens.vocab_size, tokens.end_of_text) == (4, 3)
    assert tokens.of([b"a b c", b"b"]).tolist() == [1, 2, 0, 3, 2, 3]


def test_a_tokenizer_that_will_not_do(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"must be `bytes` or a folder with a tokenizer; gpt2 is no folder"):
        tokens_of("gpt2")
    with pytest.raises(SettingsError, match="holds no tokenizer that transformers can load"):
        tokens_of(str(tmp_path))
    write_tokenizer(tmp_path)
    with pytest.raises(SettingsError, match="has no eos_token"):
        tokens_of(str(tmp_path))
