import numpy as np
import pytest
import torch

from estfx.errors import EstfxError
from estfx.training.document_sources import STANDARD_LIBRARY, _standard_library, documents
from estfx.training.text_data import Blocks, Tokens, corpus_of

END_OF_FILE = Tokens().end_of_text


def standard_library(root=None):
    texts = documents([STANDARD_LIBRARY], "text") if root is None else _standard_library(root)
    return corpus_of(text for text in texts if text)


@pytest.fixture(scope="module")
def corpus():
    return standard_library()


def files_of(tokens):
    """The texts of a token stream."""
    ends = np.flatnonzero(tokens == END_OF_FILE)
    return [part[1:] if i else part for i, part in enumerate(np.split(tokens, ends)[:-1])]


def test_the_standard_library_is_enough_to_train_on(corpus):
    assert len(corpus.train) > 1_000_000
    assert len(corpus.held_out) > 100_000
    assert corpus.train.min() >= 0
    assert corpus.train.max() == END_OF_FILE == Tokens().vocab_size - 1


def test_no_file_is_in_both_parts_or_twice(corpus):
    train = {bytes(text.astype(np.uint8)) for text in files_of(corpus.train)}
    held_out = {bytes(text.astype(np.uint8)) for text in files_of(corpus.held_out)}
    assert not train & held_out
    assert len(train) + len(held_out) == corpus.num_texts


def test_the_text_is_the_same_every_time(corpus):
    again = standard_library()
    np.testing.assert_array_equal(corpus.train, again.train)
    np.testing.assert_array_equal(corpus.held_out, again.held_out)


def write_files(root, count):
    for i in range(count):
        (root / f"module_{i}.py").write_text(f"x = {i}\n")


def test_tests_packages_and_copies_are_left_out(tmp_path):
    write_files(tmp_path, 200)
    for folder in ("test", "site-packages", "idlelib/idle_test", "copy"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "test" / "a.py").write_text("a test")
    (tmp_path / "site-packages" / "b.py").write_text("a package")
    (tmp_path / "idlelib" / "idle_test" / "c.py").write_text("a test")
    (tmp_path / "copy" / "d.py").write_text("x = 3\n")
    (tmp_path / "empty.py").write_text("")
    assert standard_library(tmp_path).num_texts == 200


def test_a_file_keeps_its_part_when_others_come(tmp_path):
    write_files(tmp_path, 200)
    before = {bytes(text.astype(np.uint8)) for text in files_of(standard_library(tmp_path).held_out)}
    write_files(tmp_path, 300)
    after = {bytes(text.astype(np.uint8)) for text in files_of(standard_library(tmp_path).held_out)}
    assert before < after


def test_no_text_is_an_error(tmp_path):
    with pytest.raises(EstfxError, match="no text to train on"):
        standard_library(tmp_path)


def test_a_single_text_is_split_near_its_end():
    found = corpus_of([bytes(range(200))])
    assert (len(found.train), len(found.held_out), found.num_texts) == (191, 10, 1)
    assert [*found.train, *found.held_out] == [*range(200), END_OF_FILE]


def test_blocks_are_consecutive_and_their_own_labels_but_for_the_first_token():
    blocks = Blocks(np.arange(10, dtype=np.int16), seq_len=3)
    assert len(blocks) == 3
    assert blocks[1]["input_ids"].tolist() == [3, 4, 5]
    assert blocks[1]["labels"].tolist() == [-100, 4, 5]
    assert blocks[1]["input_ids"].dtype == torch.int64
    assert [block["input_ids"][0].item() for block in blocks] == [0, 3, 6]  # ends, as a sequence must


def test_blocks_can_be_limited():
    assert len(Blocks(np.arange(10, dtype=np.int16), seq_len=3, max_blocks=2)) == 2
    assert len(Blocks(np.arange(10, dtype=np.int16), seq_len=3, max_blocks=20)) == 3


def test_a_block_longer_than_the_text_is_an_error():
    with pytest.raises(EstfxError, match=r"smaller data\.seq_len"):
        Blocks(np.arange(10, dtype=np.int16), seq_len=11)
