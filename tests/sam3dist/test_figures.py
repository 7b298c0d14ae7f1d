import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from sam3dist.data.samples.write import scene_shards
from sam3dist.figures import entries, search_figures, training_figures

DATA = SimpleNamespace(max_pixels=10**7)


def run_config(teacher: Path, figures: int) -> SimpleNamespace:
    return SimpleNamespace(
        teacher=SimpleNamespace(source=str(teacher), precision="fp32", geometry_token=None),
        student=SimpleNamespace(like=None),
        run=SimpleNamespace(figures=figures),
        data=DATA,
        eval=SimpleNamespace(threshold=0.2),
    )


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    lines = [{"step": step, "kind": "train", "loss/total": 3.0 / step} for step in (1, 2)]
    lines.append({"step": 2, "kind": "eval", "miou_all": 0.5})
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


@pytest.fixture(scope="module")
def val(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scene_shards(tmp_path_factory.mktemp("figures"), images=3, seed=5, side=64)


def test_a_training_run_shows_its_curves_and_some_answers(tiny_teacher_dir: Path, run_dir: Path, val: Path):
    result = {"checkpoint": str(tiny_teacher_dir), "data": {"val": str(val)}}
    drawn = training_figures(run_dir, run_config(tiny_teacher_dir, figures=2), result)
    told = entries(run_dir, drawn)
    assert told["figures"] == ["figures/curves.png", "figures/panel_01.png", "figures/panel_02.png"]
    assert told["captions"].keys() == set(told["figures"])
    assert "drawn at random" in told["captions"]["figures/panel_01.png"]
    assert all(min(Image.open(path).size) > 100 for path in drawn)


def test_no_model_is_loaded_for_no_pictures(run_dir: Path):
    drawn = training_figures(run_dir, run_config(Path("nowhere"), figures=0), {})
    assert [path.name for path in drawn] == ["curves.png"]


def test_a_large_teacher_draws_nothing_on_a_cpu(tiny_teacher_dir: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sam3dist.figures.SLOW_MILLIONS", 0.1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    drawn = training_figures(run_dir, run_config(tiny_teacher_dir, figures=2), {})
    assert [path.name for path in drawn] == ["curves.png"]


def test_a_search_shows_its_front_its_trials_and_the_curves_of_the_best(run_dir: Path, tmp_path: Path):
    trials = [
        {"trial": "000", "state": "done", "config": {}, "metrics": {"miou_all": 0.5}, "params_millions": 1.0},
        {"trial": "001", "state": "refused", "config": {}, "metrics": {}, "params_millions": None},
    ]
    result = {"trials": trials, "front": [{"trial": "000"}], "best": trials[0], "objective": {}}
    (tmp_path / "trials" / "000").mkdir(parents=True)
    (run_dir / "history.jsonl").rename(tmp_path / "trials" / "000" / "history.jsonl")
    told = entries(tmp_path, search_figures(tmp_path, "miou_all", result))
    assert told["figures"] == ["figures/pareto.png", "figures/trials.png", "figures/curves.png"]
    assert all(Image.open(tmp_path / path).size[0] > 300 for path in told["figures"])


def test_a_teacher_of_another_kind_is_not_asked_for_pictures(run_dir: Path):
    config = run_config(Path("nowhere"), figures=2)
    config.student.like = "embedded"
    assert [path.name for path in training_figures(run_dir, config, {})] == ["curves.png"]
