import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from sam3dist.report import write_report
from tests.sam3dist.made_up import search


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    write_report(tmp_path, search(tmp_path))
    return tmp_path


def recommended(run_dir: Path) -> list[str]:
    report = json.loads((run_dir / "report.json").read_text())
    return sorted({row["trial"] for row in report["recommended"] if row["trial"]})


def test_each_recommended_student_has_a_card_that_the_hub_can_read(run_dir: Path):
    cards = sorted(run_dir.glob("recommended/*/card.md"))
    assert [path.parent.name for path in cards] == recommended(run_dir)
    for path in cards:
        data = ModelCard.load(path).data
        assert data.base_model == "facebook/sam3"
        assert data.library_name == "transformers"
        (miou, presence) = data.eval_results
        assert (miou.metric_type, miou.metric_name) == ("miou_all", "mIoU, all pairs")
        assert miou.dataset_name == "shards/photos-val"
        assert presence.metric_value == 0.5
        assert miou.task_type == "image-segmentation"


def test_a_card_says_what_was_measured_and_on_what_and_nothing_else(run_dir: Path):
    name = recommended(run_dir)[0]
    row = next(row for row in json.loads((run_dir / "report.json").read_text())["trials"] if row["trial"] == name)
    text = (run_dir / "recommended" / name / "card.md").read_text()
    assert f"# made-up-{name}" in text
    assert f"is trial {name} of 20 of a search" in text
    assert f"| mIoU, all pairs | – | {row['metrics']['miou_all']:.4g} |" in text
    assert f"| int4 | {row['megabytes']['int4']:.4g} |" in text
    assert "Measured on `shards/photos-val` (its first 500 images), at a threshold of 0.5" in text
    assert "Quality after quantisation was not measured" in text
    assert "license:" not in text
    assert "/data/" not in text  # nothing of the machine
    knobs = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert knobs == row["config"]


def test_a_card_says_how_to_load_the_class_that_the_checkpoint_names(tmp_path: Path):
    report = search(tmp_path)
    for trial, kind in zip(report["trials"], ["sam3", "sam3_student"] * 10, strict=True):
        folder = tmp_path / "checkpoints" / trial["trial"] / "student"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
        trial["checkpoint"] = str(folder.parent)
    write_report(tmp_path, report)
    kinds = {"000": "Sam3Model.from_pretrained", "001": "trust_remote_code=True"}
    for name in recommended(tmp_path):
        text = (tmp_path / "recommended" / name / "card.md").read_text()
        assert kinds[f"00{int(name) % 2}"] in text
        assert f"sam3dist predict {tmp_path}/checkpoints/{name} " in text


def test_without_a_checkpoint_or_configuration_a_card_says_less(tmp_path: Path):
    report = search(tmp_path)
    for trial in report["trials"]:
        trial["checkpoint"] = None
        (tmp_path / "trials" / trial["trial"] / "config.yaml").unlink(missing_ok=True)
    write_report(tmp_path, report)
    name = recommended(tmp_path)[0]
    text = (tmp_path / "recommended" / name / "card.md").read_text()
    assert "## Use" not in text
    assert "base_model" not in text
    assert "a teacher that is not on record" in text
    assert f"# trial-{name}" in text


def test_cards_of_students_that_are_no_longer_recommended_go(run_dir: Path):
    stale = run_dir / "recommended" / "999"
    stale.mkdir()
    (stale / "card.md").touch()
    theirs = run_dir / "recommended" / "998"
    theirs.mkdir()
    (theirs / "card.md").touch()
    (theirs / "notes.txt").touch()
    write_report(run_dir, search(run_dir))
    assert not stale.exists()
    assert [path.name for path in theirs.iterdir()] == ["notes.txt"]
