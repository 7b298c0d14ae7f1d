from __future__ import annotations

import random

import open_clip.tokenizer
import pytest
import torch

from sam3dist.errors import CheckpointError
from sam3dist.models.text import clean, clip_tokenizer, load_tokenizer, tokenize, valid_tokens

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


def generated(count: int) -> list[str]:
    """Phrases as people write them, from words that no list of ours holds."""
    words = [
        "old",
        "Red",
        "shiny",
        "half-eaten",
        "3",
        "left-most",
        "person's",
        "umbrella",
        "truck",
        "tail",
        "of",
        "the",
    ]
    draw = random.Random(7)
    return [" ".join(draw.choices(words, k=draw.randint(1, 7))) for _ in range(count)]


ODD = [
    "",
    "!",
    "!(!",
    "“smart” quotes — dash",
    "Ｆｕｌｌｗｉｄｔｈ",
    "caf\u00e9 vs cafe\u0301",
    "tabs\tand\nlines",
    "a &lt;b&gt; &amp;",
    "schÃ¶n",  # mojibake
    "👩‍🚀 rides",
    "C++ x^2 = 4!",
    "it's she'll we've",
    "ÀÉÎ",
]


def test_rows_are_open_clips_up_to_the_end_token_whatever_each_fills_them_with():
    tokenizer, reference = clip_tokenizer(), open_clip.tokenizer.SimpleTokenizer()
    phrases = generated(400) + ODD + PHRASES
    for context in (32, 77):
        ids, mask = tokenize(tokenizer, phrases, context)
        theirs = reference(phrases, context_length=context)
        length = ids.shape[1]
        counted = valid_tokens(theirs, end=49407)
        assert torch.equal(counted[:, :length], mask)
        assert not counted[:, length:].any()
        assert torch.equal(ids * mask, theirs[:, :length] * mask)
        assert (theirs[counted == 0] == 0).all()
        assert (ids[mask == 0] == 49407).all()


def test_long_phrases_are_cut_where_open_clip_cuts_them():
    phrases = ["a very " * 40 + "long phrase", "word"]
    ids, mask = tokenize(clip_tokenizer(), phrases, 32)
    assert torch.equal(ids * mask, open_clip.tokenizer.SimpleTokenizer()(phrases, context_length=32))
    assert ids[0, -1] == 49407


def test_masks_are_those_of_transformers_although_ids_of_0_occur_in_phrases():
    tokenizer = clip_tokenizer()
    phrases = [*generated(50), "!(", "fish !"]
    encoded = tokenizer([clean(phrase) for phrase in phrases], padding=True, return_tensors="pt")
    assert (encoded["input_ids"] == 0).any()
    ids, mask = tokenize(tokenizer, phrases)
    assert torch.equal(ids, encoded["input_ids"])
    assert torch.equal(mask, encoded["attention_mask"])


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
