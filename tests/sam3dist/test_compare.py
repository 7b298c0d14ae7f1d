from dataclasses import replace
from math import isnan, nan
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from sam3dist.compare import Comparison, Pair, choose, compare, draw, sizes, some_pairs
from sam3dist.data.batches import evaluation_batches
from sam3dist.data.prepare import prepare
from sam3dist.data.samples.write import scene_shards, write_scenes
from sam3dist.data.settings import PrepareSettings
from sam3dist.data.shards import Shards, open_shards
from sam3dist.evaluate import evaluate
from sam3dist.models.segmenter import Segmenter

DATA = SimpleNamespace(
    images_per_batch=4,
    decode_threads=1,
    prefetch_batches=1,
    max_pixels=10**7,
    max_rejected_share=0.0,
    prompts_per_image=4,
    negative_share=0.3,
    horizontal_flip=False,
)
SETTINGS = SimpleNamespace(threshold=0.2, max_images=None, images_per_batch=3, prompts_per_batch=32)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return open_shards(scene_shards(tmp_path_factory.mktemp("compare"), images=6, seed=11, side=64))


@pytest.fixture
def student(tiny_teacher: Segmenter) -> Segmenter:
    """The teacher with bent weights."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in tiny_teacher.net.mask_decoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return tiny_teacher


@pytest.fixture
def teacher(tiny_teacher_dir: Path) -> Segmenter:
    from sam3dist.models.checkpoint import load_segmenter

    return load_segmenter(tiny_teacher_dir)


def pair(name: str, student: float = nan, teacher: float = nan, present: bool = True) -> Pair:
    return Pair(int(name[1:]), name, present, student, teacher)


def test_both_are_measured_as_evaluate_does(student: Segmenter, teacher: Segmenter, shards: Shards):
    seen: dict[str, int] = {}
    found = compare(student, teacher, shards, DATA, SETTINGS, seen.__setitem__)
    for name, model in (("student", student), ("teacher", teacher)):
        batches = evaluation_batches(shards, DATA, model.image_size, images_per_batch=3)
        expected = evaluate(model, batches, 0.2, device="cpu")
        got = getattr(found, name)
        assert {k: v for k, v in got.items() if not isnan(v)} == {k: v for k, v in expected.items() if not isnan(v)}
    assert seen == {"student": found.student["num_pairs"], "teacher": found.student["num_pairs"]}
    assert found.student != found.teacher


def test_the_pairs_average_to_the_metrics(student: Segmenter, teacher: Segmenter, shards: Shards):
    found = compare(student, teacher, shards, DATA, SETTINGS)
    assert len(found.pairs) == shards.manifest["phrases"] == found.student["num_pairs"]
    for name in ("student", "teacher"):
        mean = sum(getattr(each, name) for each in found.pairs) / len(found.pairs)
        assert mean == pytest.approx(getattr(found, name)["miou_all"])
    assert sum(each.present for each in found.pairs) == found.student["num_positive"]


def test_the_ratio_is_of_positives_and_unknown_without_any():
    both = Comparison({"miou_positive": 0.3}, {"miou_positive": 0.4}, (), {})
    assert both.student_over_teacher == pytest.approx(0.75)
    assert isnan(replace(both, teacher={"miou_positive": 0.0}).student_over_teacher)


def test_pictures_show_chance_the_worst_and_a_false_alarm():
    pairs = [pair(f"p{i}", student=0.5 + i / 100, teacher=0.6) for i in range(20)]
    pairs += [pair("p20", student=0.1, teacher=0.9), pair("n21", 1, 1, present=False), pair("n22", 0, 1, present=False)]
    picks = choose(pairs, 4)
    assert [pick.reason for pick in picks] == [
        "drawn at random",
        "the student's worst",
        "names nothing",
        "drawn at random",
    ]
    assert picks[1].pair.phrase == "p20" or picks[0].pair.phrase == "p20"
    assert picks[2].pair.phrase == "n22"  # the false alarm before the right silence
    assert choose(pairs, 4) == picks


def test_no_pair_is_shown_twice_and_few_pairs_give_few_pictures():
    pairs = [pair("p0", 0.1, 0.2), pair("p1", 0.3, 0.2), pair("n2", 1, 1, present=False)]
    picks = choose(pairs, 10)
    assert sorted(pick.pair.phrase for pick in picks) == ["n2", "p0", "p1"]
    assert choose(pairs, 0) == []
    assert choose([], 3) == []


def test_pairs_without_an_answer_are_never_called_the_worst():
    picks = choose([pair(f"p{i}") for i in range(5)] + [pair("n5", present=False)], 6)
    assert {pick.reason for pick in picks} == {"drawn at random", "names nothing"}
    assert len(picks) == 6


def test_some_pairs_are_the_phrases_of_the_first_images(shards: Shards):
    pairs = some_pairs(shards, 2)
    assert len({each.image_id for each in pairs}) == 2
    assert {each.present for each in pairs} == {True, False}


def test_chosen_pairs_are_drawn_with_a_caption(student: Segmenter, teacher: Segmenter, shards: Shards, tmp_path: Path):
    found = compare(student, teacher, shards, DATA, SETTINGS)
    picks = choose(found.pairs, 3)
    drawn = draw(picks, student, teacher, shards, DATA, 0.2, tmp_path)
    assert [path.name for path in drawn] == ["panel_01.png", "panel_02.png", "panel_03.png"]
    for pick, (path, caption) in zip(picks, drawn.items(), strict=True):
        assert min(Image.open(path).size) > 300
        assert f"“{pick.pair.phrase}”" in caption
        assert pick.reason in caption
        assert ("IoU" in caption) == pick.pair.present


def test_sizes_tell_how_much_smaller(teacher: Segmenter):
    told = sizes(teacher, teacher)
    own = sum(parameter.numel() for parameter in teacher.net.parameters()) / 1e6
    assert told["times_smaller"] == 1
    assert told["sizes"]["student"]["params_millions"] == pytest.approx(own)


def test_a_shard_that_cannot_be_read_costs_pictures_but_no_run(tmp_path: Path):
    source = write_scenes(tmp_path / "source", images=4, seed=2, side=64)
    prepare(*source, tmp_path / "shards", PrepareSettings(rows_per_group=2, rows_per_shard=2))
    shards = open_shards(tmp_path / "shards")
    images = sorted({pair.image_id for pair in some_pairs(shards, 4)})
    assert len(images) == 4
    Path(shards.row_groups[0].path).write_bytes(b"no parquet")
    assert sorted({pair.image_id for pair in some_pairs(shards, 4)}) == images[2:]
