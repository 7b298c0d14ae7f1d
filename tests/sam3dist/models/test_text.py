from __future__ import annotations

import open_clip.tokenizer
import pytest

from sam3dist.errors import CheckpointError
from sam3dist.models.text import clean, clip_tokenizer, load_tokenizer, tokenize

PHRASES = [
    "yellow fish",
    "the striped red-and-white umbrella",
    "a dog's left ear",
    "3 blue squares",
    "Zürich café",
    "naïve ‘quoted’ &amp;amp; ﬁne print",
    "球",
    "emoji 🐟!",
]


def test_ids_are_those_of_open_clip():
    tokenizer = clip_tokenizer()
    reference = open_clip.tokenizer.SimpleTokenizer()
    assert len(tokenizer) == reference.vocab_size == 49408
    ids, mask = tokenize(tokenizer, PHRASES, 32)
    for row, valid, phrase in zip(ids.tolist(), mask.sum(1).tolist(), PHRASES, strict=True):
        assert row[:valid] == [49406, *reference.encode(phrase), 49407]


@pytest.mark.parametrize("merges", [0, 100, 5000])
def test_with_fewer_merges_every_phrase_still_comes_back(merges):
    tokenizer = clip_tokenizer(merges)
    assert len(tokenizer) == 512 + merges + 2
    ids, mask = tokenize(tokenizer, PHRASES, 77)
    for row, valid, phrase in zip(ids.tolist(), mask.sum(1).tolist(), PHRASES, strict=True):
        assert tokenizer.unk_token_id not in row[1 : valid - 1]
        compact = tokenizer.decode(row[:valid], skip_special_tokens=True).replace(" ", "")
        assert compact == clean(phrase).replace(" ", "")


def test_long_phrases_are_cut_and_keep_their_end():
    ids, mask = tokenize(clip_tokenizer(10), ["word " * 60, "dog"], 32)
    assert ids.shape == mask.shape == (2, 32)
    assert ids[0, -1] == 512 + 10 + 1
    assert mask[0].all()


def test_a_batch_is_only_as_long_as_its_longest_phrase():
    ids, mask = tokenize(clip_tokenizer(), ["dog", "yellow fish"], 32)
    assert ids.shape == (2, 4)
    assert mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_phrases_are_repaired_and_lowered():
    assert clean("  Yellow\n FISH &amp;amp; chips ") == "yellow fish & chips"


def test_a_saved_tokenizer_gives_the_same_ids(tmp_path):
    tokenizer = clip_tokenizer(300)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert tokenize(loaded, PHRASES, 32)[0].tolist() == tokenize(tokenizer, PHRASES, 32)[0].tolist()


def test_no_tokenizer_is_an_error_that_names_the_place(tmp_path):
    with pytest.raises(CheckpointError, match=f"{tmp_path.name}.*no tokenizer"):
        load_tokenizer(tmp_path)
