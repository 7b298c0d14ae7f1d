from __future__ import annotations

import json

import pytest

from sam3dist.errors import DataError
from sam3dist.metrics.coco_ap import evaluate_coco

pytest.importorskip("pycocotools")


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_official_example_gives_its_12_numbers(shared_data, iou_type):
    folder = shared_data / "oracles" / "cocoapi_fake100"
    expected = json.loads((folder / "expected.json").read_text())["expected"][iou_type]
    results = folder / f"instances_val2014_fake{iou_type}100_results.json"
    numbers = evaluate_coco(folder / "instances_val2014_100.json", results, iou_type)
    assert len(numbers) == 12
    assert numbers == pytest.approx(expected, abs=1e-9)


def test_polygon_results_give_the_numbers_of_faster_coco_eval(shared_data):
    folder = shared_data / "oracles" / "faster_coco_eval"
    expected = json.loads((folder / "expected.json").read_text())["gt_dataset_dt_dataset_segm"]["expected"]
    numbers = evaluate_coco(folder / "gt_dataset.json", folder / "dt_dataset.json", "segm")
    assert numbers == pytest.approx(expected, abs=1e-9)


def one_box(path, image_id: int = 1) -> tuple[str, list[dict]]:
    truth = {
        "images": [{"id": 1, "height": 50, "width": 50}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 40, 40], "area": 1600, "iscrowd": 0}],
    }
    (path / "gt.json").write_text(json.dumps(truth))
    return str(path / "gt.json"), [{"image_id": image_id, "category_id": 1, "bbox": [0, 0, 40, 28], "score": 1.0}]


def test_iou_of_seven_tenths_counts_at_five_of_ten_thresholds(tmp_path):
    numbers = evaluate_coco(*one_box(tmp_path), "bbox")
    assert numbers["AP"] == pytest.approx(0.5)  # .50, .55, .60, .65, .70
    assert (numbers["AP50"], numbers["AP75"], numbers["APs"]) == pytest.approx((1, 0, -1))


def test_no_result_at_all_is_zero(tmp_path):
    truth, _ = one_box(tmp_path)
    assert evaluate_coco(truth, [], "bbox")["AP"] == 0


def test_results_of_other_images_are_refused(tmp_path):
    with pytest.raises(DataError, match="image_id 9 is not in"):
        evaluate_coco(*one_box(tmp_path, image_id=9), "bbox")
