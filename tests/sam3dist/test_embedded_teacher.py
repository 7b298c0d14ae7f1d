import json
from pathlib import Path

import pytest
import torch
from transformers import Sam3Model

import sam3dist
from sam3dist.data.samples.live import scene_batch
from sam3dist.evaluate import evaluate
from sam3dist.models.teacher import load_teacher

FOLDER = Path(sam3dist.__file__).parent / "data" / "samples" / "teacher"


def test_embedded_teacher_is_small_enough_to_ship():
    files = list(FOLDER.glob("*.safetensors"))
    assert len(files) == 1
    assert files[0].stat().st_size <= 16_000_000
    assert (FOLDER / "CARD.md").is_file()


def test_embedded_teacher_is_a_stock_sam3_model():
    stock = Sam3Model.from_pretrained(FOLDER).eval()
    teacher = load_teacher("embedded")
    for name, weight in stock.state_dict().items():
        assert torch.equal(weight, teacher.net.state_dict()[name]), name


@pytest.mark.slow
def test_embedded_teacher_knows_unseen_scenes_and_its_figures_are_true():
    figures = json.loads((FOLDER / "figures.json").read_text())
    batches = [scene_batch([(9, 8 * start + k) for k in range(8)], None) for start in range(6)]
    metrics = evaluate(load_teacher("embedded"), batches, 0.5, device="cpu")
    assert metrics["num_pairs"] == figures["num_pairs"] > 600
    for name in ("miou_positive", "miou_all", "presence_f1"):
        assert metrics[name] == pytest.approx(figures[name], abs=0.01), name
    assert metrics["miou_positive"] >= 0.80
    assert metrics["presence_f1"] >= 0.90
