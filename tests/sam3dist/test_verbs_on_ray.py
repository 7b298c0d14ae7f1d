"""The verbs that start Ray, with a tiny teacher."""

import json
from pathlib import Path

import pytest

from sam3dist.cli import main
from sam3dist.data.samples.write import scene_shards
from sam3dist.report import write_report
from sam3dist.verbs.smoke import OURS, clear_finished
from sam3dist.verbs.tune import nothing_found, show
from tests.sam3dist.made_up import search
from tests.sam3dist.promised import assert_promised


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    train, val = (scene_shards(folder, images, seed, side=64) for seed, images in ((0, 12), (1, 4)))
    return [f"data.train={train}", f"data.val={val}", "data.images_per_batch=2", "strategy.cpus_per_worker=0.5"]


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.splitlines()[-1]


@pytest.mark.long
def test_train_reports_and_a_second_call_finds_it_done(
    tiny_teacher_dir: Path, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["train", "smoke", f"teacher.source={tiny_teacher_dir}", f"run.dir={tmp_path / 'run'}", *data]
    words += ["student.vision_width=32", "student.vision_depth=1", "optim.steps=3", "optim.warmup_steps=1"]
    assert main([*words, "run.figures=1"]) == 0
    assert last_line(capsys) == str(tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["verb"], report["status"], report["step"], report["complete"]) == ("train", "ok", 3, True)
    assert_promised(report)
    assert report["metrics"].keys() == report["before"].keys()
    assert report["params_millions"] > 0
    assert report["samples_per_second"] > 0
    assert report["figures"] == ["figures/curves.png", "figures/panel_01.png"]
    assert (Path(report["checkpoint"]) / "student" / "model.safetensors").is_file()
    assert main(["eval", str(tmp_path / "run"), data[1].removeprefix("data.val="), f"run.dir={tmp_path / 'eval'}"]) == 0
    evaluated = json.loads((tmp_path / "eval" / "report.json").read_text())
    assert evaluated["metrics"]["miou_all"] == pytest.approx(report["metrics"]["miou_all"], abs=1e-6)
    assert main([*words, "run.figures=0"]) == 0
    again = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (again["step"], again["metrics"]) == (3, report["metrics"])


@pytest.mark.slow
def test_smoke_searches_compares_and_reports(
    tiny_teacher_dir: Path, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = [
        "smoke",
        f"teacher.source={tiny_teacher_dir}",
        f"run.dir={tmp_path / 'run'}",
        "seeds=[]",
        "trials=2",
        *data,
    ]
    words += ["space.student.vision_width={choice: [16, 32]}", "space.student.vision_depth={choice: [1, 2]}"]
    words += ["space.student.decoder_layers={choice: [1, 2]}", "optim.steps=3", "eval.every_steps=2", "run.figures=1"]
    assert main(words) == 0
    assert last_line(capsys) == str(tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["verb"], report["status"]) == ("smoke", "ok")
    assert_promised(report)
    assert len(report["trials"]) == 2
    assert report["best"]["trial"] in {trial["trial"] for trial in report["trials"]}
    assert report["before"]
    assert report["taught"]["pairs"] > 0
    assert report["taught"]["feature_bytes"] > 0  # gamma is searched
    charts = ["figures/pareto.png", "figures/trials.png", "figures/curves.png"]
    assert report["figures"] == [*charts, "figures/panel_01.png"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<summary>Search</summary>" in page
    assert "<summary>Configuration that every trial starts from</summary>" in page


def test_a_finished_smoke_run_makes_room_but_keeps_its_scenes_and_what_is_not_ours(tmp_path: Path):
    for name in ("trials", "tune", "figures", "scenes", "theirs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / "notes.txt").touch()
    clear_finished(tmp_path)
    assert len(list(tmp_path.iterdir())) == 6  # not finished: no report
    (tmp_path / "report.json").write_text(json.dumps({"verb": "tune"}))
    clear_finished(tmp_path)
    assert len(list(tmp_path.iterdir())) == 7  # another verb's
    (tmp_path / "report.json").write_text(json.dumps({"verb": "smoke"}))
    clear_finished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "scenes", "theirs"]
    clear_finished(tmp_path / "gone")
    assert OURS[-1] == "report.json"  # removed last: an interrupted clearing is done again


def test_the_table_of_trials_is_best_first_with_the_front_marked(capsys: pytest.CaptureFixture[str]):
    def trial(name: str, quality: float | None) -> dict:
        metrics = {} if quality is None else {"miou_all": 0.1, "presence_f1": quality}
        return {"trial": name, "state": "done", "config": {"a.width": 8}, "metrics": metrics, "params_millions": 1.5}

    front = [{"trial": "001", "miou_all": 0.1, "presence_f1": 0.7, "params_millions": 1.5, "checkpoint": "runs/x/001"}]
    trials = [trial("000", 0.2), trial("001", 0.7), trial("002", None)]
    show({"trials": trials, "front": front, "objective": {"quality": "presence_f1"}})
    out = capsys.readouterr().out
    assert out.index("* 001") < out.index("  000") < out.index("  002")
    assert "presence_f1" in out
    assert out.count(" 0.7 ") == 2  # in the table of trials, and of the front
    assert "runs/x/001" in out


def test_the_recommended_students_are_a_table_and_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    report = write_report(tmp_path, search(tmp_path) | {"verb": "tune"})
    show(report)
    out = capsys.readouterr().out
    assert "Recommended students" in out
    assert "MB in int4" in out
    for row in report["recommended"]:
        assert f"{row['limit_mb']}\N{NO-BREAK SPACE}MB" in out
        assert f"trial {row['trial']} in full: {row['command']}\n" in out  # in one line, to be copied


def test_a_search_that_finds_nothing_says_why_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    refused = {"trial": "000", "state": "refused", "config": {"a": 1}, "metrics": {}, "params_millions": None}
    report = {"verb": "tune", "seconds": 1.0, "trials": [refused | {"reason": "too large"}], "front": []}
    report |= {"objective": {"quality": "miou_all"}, "best": None, "hypervolume": 0.0}
    assert nothing_found(tmp_path, report) == 1
    said = capsys.readouterr()
    why = "The front is empty, because no trial was trained to its end: 1 refused. Reasons: 1× too large"
    assert said.err == f"sam3dist: {why}\n"
    assert said.out.splitlines()[-1] == str(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["status"] == "empty"


def test_finalists_are_a_table_with_mean_and_deviation(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    runs = [{"seed": 0, "metrics": {"miou_all": 0.625}}, {"seed": 1, "reason": "a loss is NaN"}]
    row = {"trial": "004", "of_the_search": 0.5, "mean": 0.625, "std": None, "runs": runs, "params_millions": 1.5}
    report = write_report(tmp_path, search(tmp_path) | {"verb": "tune", "finalists": [row]})
    show(report)
    out = capsys.readouterr().out
    assert "Finalists" in out
    assert "0.625 –" in out
    assert "Finalists" in (tmp_path / "report.html").read_text()
