from __future__ import annotations

import io
import itertools
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from sam3dist.config.distill import DataConfig
from sam3dist.data.batches import (
    MAX_PROMPTS,
    batches,
    calibration_batches,
    endless,
    evaluation_batches,
    follow,
)
from sam3dist.data.decode import View, decode_image, decode_row, recoloured
from sam3dist.data.epoch import drawn_view
from sam3dist.data.masks import decode_rle, encode_mask
from sam3dist.data.rows import Instance, Prompt, Row, from_table, to_table
from sam3dist.data.segments import Segment
from sam3dist.data.shards import RowGroup, Shards, first_rows, num_phrases, open_shards, read_rows, split_row_groups
from sam3dist.errors import DataError
from sam3dist.types import PromptBatch
from tests.sam3dist.data.coco_folder import SIZE, CocoFolder, picture_of

SIDE = 16
ROWS = 22


def config(**changes: object) -> DataConfig:
    return DataConfig(**({"images_per_batch": 4, "prompts_per_image": 2} | changes))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """22 rows in row groups of 4; each has one or two cats, and neither a dog nor a traffic light."""
    coco = CocoFolder(tmp_path_factory.mktemp("batches"))
    for index in range(ROWS):
        image = coco.image()
        coco.instance(image)
        if index % 2:
            coco.instance(image, segmentation=[[20, 2, 30, 2, 30, 8, 20, 8]])
    coco.prepare(rows_per_group=4, rows_per_shard=12)
    return open_shards(coco.out)


def ids(made: list[PromptBatch]) -> list[int]:
    return [image for batch in made for image in batch.image_ids]


def questions(made: list[PromptBatch]) -> list[tuple[int, str]]:
    return [
        (batch.image_ids[image], phrase)
        for batch in made
        for image, phrase in zip(batch.image_of_prompt, batch.prompts, strict=True)
    ]


def training(shards: Shards, epoch: int = 0, seed: int = 0, **changes: object) -> list[PromptBatch]:
    return list(batches(shards.row_groups, config(**changes), SIDE, seed=seed, epoch=epoch, training=True))


def same(one: PromptBatch, other: PromptBatch) -> bool:
    masks = [[rle.counts.tolist() for rle in rles] for rles in one.masks]
    return (
        torch.equal(one.images, other.images)
        and one.image_ids == other.image_ids
        and one.prompts == other.prompts
        and masks == [[rle.counts.tolist() for rle in rles] for rles in other.masks]
    )


# --- training


def test_an_epoch_shows_every_image_once(shards: Shards):
    made = training(shards)
    assert sorted(ids(made)) == list(range(1, ROWS + 1))
    assert [len(batch.image_ids) for batch in made] == [4, 4, 4, 4, 4, 2]


def test_a_batch_is_what_the_types_promise(shards: Shards):
    for batch in training(shards):
        assert batch.images.shape[1:] == (3, SIDE, SIDE)
        assert batch.images.dtype == torch.uint8
        assert batch.image_sizes == (SIZE,) * len(batch.image_ids)
        assert batch.image_of_prompt.dtype == torch.int64
        for image, phrase, present, masks in zip(
            batch.image_of_prompt, batch.prompts, batch.present, batch.masks, strict=True
        ):
            assert present == (phrase == "cat")
            number = batch.image_ids[image]
            assert len(masks) == ((1 + (number - 1) % 2) if present else 0)


def test_the_same_seed_and_epoch_give_the_same_batches_on_any_number_of_threads(shards: Shards):
    one, other = training(shards, decode_threads=1), training(shards, decode_threads=4)
    assert all(same(a, b) for a, b in zip(one, other, strict=True))


def test_another_epoch_or_seed_gives_another_order(shards: Shards):
    orders = {tuple(ids(training(shards, epoch, seed))) for epoch in range(3) for seed in range(3)}
    assert len(orders) == 9


def test_rows_of_different_row_groups_meet_in_a_batch(shards: Shards):
    groups_of_batches = [{(image - 1) // 4 for image in batch.image_ids} for batch in training(shards)]
    assert max(len(groups) for groups in groups_of_batches) > 1


def test_the_share_of_negatives_is_as_configured(shards: Shards):
    made = [batch for epoch in range(30) for batch in training(shards, epoch, negative_share=0.25, prompts_per_image=3)]
    present = torch.cat([batch.present for batch in made]).float()
    assert present.mean().item() == pytest.approx(0.75, abs=0.05)


def test_flips_mirror_image_and_masks_together(shards: Shards):
    plain = {batch.image_ids[0]: batch for batch in training(shards, images_per_batch=1, negative_share=0)}
    mirrored = 0
    for batch in training(shards, images_per_batch=1, negative_share=0, horizontal_flip=True):
        before = plain[batch.image_ids[0]]
        if torch.equal(batch.images, before.images):
            expected = before
            assert same(batch, expected)
        else:
            mirrored += 1
            assert torch.equal(batch.images, before.images.flip(-1))
            for rle, original in zip(batch.masks[0], before.masks[0], strict=True):
                assert np.array_equal(decode_rle(rle), np.fliplr(decode_rle(original)))
    assert 5 <= mirrored <= 17  # of 22


def test_evaluation_never_flips(shards: Shards):
    plain = list(evaluation_batches(shards, config(), SIDE))
    flipping = list(evaluation_batches(shards, config(horizontal_flip=True), SIDE))
    assert all(same(a, b) for a, b in zip(plain, flipping, strict=True))


def test_calibration_sees_the_first_images_in_small_batches(shards: Shards):
    seen = list(calibration_batches(shards, DataConfig(images_per_batch=4), 32, images=5, seed=0))
    assert [len(batch.image_ids) for batch in seen] == [2, 2, 1]
    first = [row.image_id for group in first_rows(shards.row_groups, 5) for row in read_rows(group)]
    assert sorted(identity for batch in seen for identity in batch.image_ids) == sorted(first)


def test_endless_batches_are_the_epochs_one_after_the_other(shards: Shards):
    stream = endless(shards.row_groups, config(), SIDE, seed=3)
    made = list(itertools.islice(stream, 12))
    stream.close()
    assert sorted(ids(made[:6])) == sorted(ids(made[6:])) == list(range(1, ROWS + 1))
    assert ids(made[:6]) != ids(made[6:])


def test_endless_resumes_in_the_middle_of_an_epoch(shards: Shards):
    stream = endless(shards.row_groups, config(), SIDE, seed=3)
    whole = list(itertools.islice(stream, 15))
    stream.close()
    for step in (1, 5, 6, 9, 11):  # 22 rows in batches of 4: 6 an epoch
        resumed = endless(shards.row_groups, config(), SIDE, seed=3, history=[Segment("", 1, 1, 1, 4, step)])
        for expected, got in zip(whole[step:], resumed, strict=False):
            assert same(expected, got)
        resumed.close()


def test_changing_ranks_and_batches_show_every_image_once_an_epoch(shards: Shards):
    seen: list[int] = []
    history: tuple[Segment, ...] = ()
    for world_size, images, drawn in [(3, 2, 2), (2, 3, 1), (4, 4, 3), (2, 1, 4)]:
        per_batch = config(images_per_batch=images)
        for rank in range(world_size):
            stream = endless(
                shards.row_groups, per_batch, SIDE, seed=3, rank=rank, world_size=world_size, history=history
            )
            seen += ids(list(itertools.islice(stream, drawn)))
            stream.close()
        history = (*history, Segment("", world_size, 1, world_size, images, drawn))
    rest = endless(shards.row_groups, config(), SIDE, seed=3, history=history)
    while len(seen) < 4 * ROWS:
        seen += ids([next(rest)])
    rest.close()
    assert Counter(seen) == dict.fromkeys(range(1, ROWS + 1), 4)


@pytest.mark.parametrize("world_size", [2, 4, 5])
def test_ranks_share_an_epoch_without_overlap(shards: Shards, world_size: int):
    rows = first_rows(shards.row_groups, 20)  # of which each rank has as many
    seen: Counter[int] = Counter()
    for rank in range(world_size):
        stream = endless(rows, config(), SIDE, seed=1, rank=rank, world_size=world_size)
        mine = ids(list(itertools.islice(stream, -(-20 // world_size // 4))))
        stream.close()
        assert len(mine) == 20 // world_size
        seen.update(mine)
    assert seen == Counter(range(1, 21))


def test_a_rank_without_rows_fails_instead_of_waiting(shards: Shards):
    few = first_rows(shards.row_groups, 2)
    with pytest.raises(DataError, match=r"2 rows cannot feed 8 workers; .*strategy\.num_workers"):
        next(endless(few, config(), SIDE, seed=0, rank=7, world_size=8))


def test_stopping_early_leaves_no_thread(shards: Shards):
    for make in (
        lambda: batches(shards.row_groups, config(prefetch_batches=1), SIDE, seed=0, epoch=0, training=True),
        lambda: endless(shards.row_groups, config(), SIDE, seed=0),
        lambda: evaluation_batches(shards, config(), SIDE),
    ):
        stream = make()
        next(stream)
        stream.close()
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("sam3dist-")]


# --- evaluation


def test_evaluation_asks_everything_in_order(shards: Shards):
    made = list(evaluation_batches(shards, config(), SIDE))
    asked = [
        (batch.image_ids[i], p) for batch in made for i, p in zip(batch.image_of_prompt, batch.prompts, strict=True)
    ]
    assert len(asked) == len(set(asked)) == 3 * ROWS
    assert ids(made) == list(range(1, ROWS + 1))


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("max_images", [None, 1, 10, 100])
def test_ranks_evaluate_each_image_once(shards: Shards, world_size: int, max_images: int | None):
    seen = [
        image
        for rank in range(world_size)
        for image in ids(list(evaluation_batches(shards, config(), SIDE, rank, world_size, max_images)))
    ]
    assert sorted(seen) == list(range(1, min(max_images or ROWS, ROWS) + 1))


@pytest.mark.parametrize("max_images", [None, 1, 10, 100])
def test_phrases_are_counted_as_an_evaluation_asks_them(shards: Shards, max_images: int | None):
    asked = questions(list(evaluation_batches(shards, config(), SIDE, max_images=max_images)))
    assert num_phrases(shards, max_images) == len(asked) > 0


def test_many_phrases_are_spread_over_batches(coco: CocoFolder):
    coco.head["categories"] = [{"id": i, "name": f"thing {i}"} for i in range(1, 81)]
    for category in (1, 50):
        coco.instance(coco.image(), category)
    coco.prepare(max_negatives_per_image=100)
    made = list(evaluation_batches(open_shards(coco.out), config(), SIDE))
    assert max(len(batch.prompts) for batch in made) <= MAX_PROMPTS
    asked = [
        (batch.image_ids[i], p) for batch in made for i, p in zip(batch.image_of_prompt, batch.prompts, strict=True)
    ]
    assert len(asked) == len(set(asked)) == 160
    assert sum(int(batch.present.sum()) for batch in made) == 2
    few = list(evaluation_batches(open_shards(coco.out), config(), SIDE, prompts_per_batch=7))
    assert max(len(batch.prompts) for batch in few) == 7
    assert sorted(questions(few)) == sorted(asked)


# --- pixels


def test_images_are_squashed_as_pillow_would(shards: Shards):
    (row, *_) = read_rows(shards.row_groups[0])
    expected = picture_of(0).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    got = decode_image(row.image, SIZE, SIDE, 10**6).numpy().astype(int)
    # Both resize in fixed point, with different digits.
    assert np.abs(got - np.asarray(expected).transpose(2, 0, 1)).max() <= 2


def test_decoding_jpeg_at_a_smaller_scale_shows_the_same_picture(coco: CocoFolder):
    picture = picture_of(1, (400, 560))
    coco.save("a.jpg", picture, quality=95)
    got = decode_image((coco.images_dir / "a.jpg").read_bytes(), (400, 560), 64, 10**6)
    expected = np.asarray(picture.resize((64, 64), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.abs(got.numpy().astype(int) - expected).mean() < 2


def test_rows_survive_arrow(shards: Shards):
    rows = [row for group in shards.row_groups for row in read_rows(group)]
    for row, again in zip(rows, from_table(to_table(rows)), strict=True):
        assert replace(row, prompts=()) == replace(again, prompts=())
        for one, other in zip(row.prompts, again.prompts, strict=True):
            assert replace(one, instances=()) == replace(other, instances=())
            assert [i.counts.tolist() for i in one.instances] == [i.counts.tolist() for i in other.instances]
            assert [(i.box, i.area) for i in one.instances] == [(i.box, i.area) for i in other.instances]


# --- manifests and references


def test_a_folder_without_shards_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"no manifest\.json"):
        open_shards(tmp_path)
    for content in ("{", "[]", "{}", '{"schema_version": 1}', '{"schema_version": 1, "shards": [{"file": 5}]}'):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(DataError, match="not a manifest of shards"):
            open_shards(tmp_path)
    (tmp_path / "manifest.json").write_text('{"schema_version": 99}')
    with pytest.raises(DataError, match="schema version 99"):
        open_shards(tmp_path)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("groups", [1, 3, 40])
def test_splitting_gives_every_row_to_one_rank(world_size: int, groups: int):
    references = [RowGroup("a", index, 5 + index % 3) for index in range(groups)]
    rows = Counter(
        (piece.index, place)
        for rank in range(world_size)
        for piece in split_row_groups(references, rank, world_size)
        for place in piece.places
    )
    assert rows == Counter((group.index, place) for group in references for place in range(group.rows))


def test_chosen_rows_of_a_row_group_are_read_in_their_order(shards: Shards):
    group = shards.row_groups[1]
    whole = read_rows(group)
    chosen = read_rows(replace(group, chosen=(3, 0, 2)))
    assert [row.image_id for row in chosen] == [whole[place].image_id for place in (3, 0, 2)]


def test_colours_change_with_the_image_and_the_epoch_and_nothing_else_does(coco: CocoFolder):
    for _ in range(6):
        coco.instance(coco.image())
    coco.prepare()
    shards = open_shards(coco.out)

    def drawn(epoch: int, **changes: object) -> PromptBatch:
        return next(follow([(epoch, shards.row_groups)], DataConfig(images_per_batch=6, **changes), 16, seed=0))

    plain, jittered, again = drawn(0), drawn(0, colour_jitter=0.5), drawn(0, colour_jitter=0.5)
    assert jittered.prompts == plain.prompts
    for ours, theirs in zip(jittered.masks, plain.masks, strict=True):
        assert [rle.counts.tolist() for rle in ours] == [rle.counts.tolist() for rle in theirs]
    assert torch.equal(jittered.images, again.images)
    assert not torch.equal(drawn(1, colour_jitter=0.5).images, jittered.images)
    brightness = jittered.images.float().mean((1, 2, 3)) / plain.images.float().mean((1, 2, 3))
    assert brightness.std() > 0.05
    assert brightness.min() > 0.4


def test_recoloured_pixels_are_those_of_the_formulas():
    pixels = np.random.default_rng(0).integers(40, 160, (3, 9, 7), dtype=np.uint8)
    np.testing.assert_allclose(recoloured(pixels, (1.3, 1.0, 1.0)), pixels * 1.3, atol=1)
    gray = 0.299 * pixels[0] + 0.587 * pixels[1] + 0.114 * pixels[2]
    np.testing.assert_allclose(recoloured(pixels, (1.0, 1.0, 0.4)), gray + 0.4 * (pixels - gray), atol=2)
    np.testing.assert_allclose(recoloured(pixels, (1.0, 0.5, 1.0)), gray.mean() + 0.5 * (pixels - gray.mean()), atol=2)


def test_a_crop_shows_the_same_part_of_image_and_masks():
    """A gradient for an image: its colours tell which pixels were seen, its mask is where they are bright."""
    height, width = 120, 160
    ramp = np.linspace(0, 255, width)[None].repeat(height, 0)
    down = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    picture = np.stack([ramp, down, ramp], 2).round().astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    right, corner = ramp > 128, (ramp < 40) & (down < 40)
    instances = [Instance(encode_mask(mask).counts, (0, 0, 1, 1), 1) for mask in (right, corner)]
    prompts = (
        Prompt("right", True, True, instances[:1], None),
        Prompt("corner", True, True, instances[1:], None),
        Prompt("some corners", True, False, instances[1:], None),
        Prompt("nothing", False, True, (), None),
    )
    row = Row(stream.getvalue(), 1, "ramp.png", height, width, prompts)
    window = (60, 40, 48, 96)
    sample = decode_row(row, prompts, 48, 10**6, View(window))
    assert sample.size == (48, 96)
    assert [question.phrase for question in sample.asked] == ["right", "corner", "nothing"]
    assert [question.present for question in sample.asked] == [True, False, False]
    np.testing.assert_array_equal(decode_rle(sample.asked[0].masks[0]), right[60:108, 40:136])
    seen = sample.pixels.numpy().astype(float)
    np.testing.assert_allclose(seen[0][:, 1:-1], ramp[:1, 41:136:2].repeat(48, 0)[:, 1:-1], atol=2.5)
    np.testing.assert_allclose(seen[1][1:-1], down[60:108, :1].repeat(48, 1)[1:-1], atol=2.5)
    mirrored = decode_row(row, prompts, 48, 10**6, View(window, flip=True))
    assert torch.equal(mirrored.pixels, sample.pixels.flip(2))
    np.testing.assert_array_equal(decode_rle(mirrored.asked[0].masks[0]), right[60:108, 40:136][:, ::-1])


def test_crops_keep_the_share_that_is_asked_for():
    rng = Random(0)
    shares = []
    for _ in range(300):
        view = drawn_view((120, 160), config(crop_share=0.3), rng)
        assert view.window is not None
        top, left, height, width = view.window
        assert 0 <= top <= 120 - height
        assert 0 <= left <= 160 - width
        shares.append(height * width / (120 * 160))
    assert min(shares) > 0.29
    assert 0.6 < np.mean(shares) < 0.7
