import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sam3dist.page import flat
from sam3dist.report import jsonable, versions, write_report
from sam3dist.wording import duration, shown

METRICS = {"miou_positive": 0.5, "miou_all": 0.61234, "presence_f1": float("nan"), "num_pairs": 1234}
TRIALS = [
    {
        "trial": "000",
        "state": "done",
        "config": {"student.vision_width": 64},
        "metrics": METRICS,
        "params_millions": 1.0,
    },
    {
        "trial": "001",
        "state": "failed",
        "config": {"student.vision_width": 96},
        "metrics": None,
        "params_millions": None,
    },
]
FRONT = [{"trial": "000", "miou_all": 0.61234, "params_millions": 1.0, "megabytes": {"fp16": 2.0}, "checkpoint": "c"}]
OBJECTIVE = {"quality": "miou_all", "size_weight": 0.1}
REPORTS = {
    "prepare": {"rows": 10, "phrases": 30, "positives": 20, "negatives": 10, "instances": 44, "rejected": {"bad": 2}},
    "train": {
        "metrics": METRICS,
        "before": dict.fromkeys(METRICS, 0.1),
        "params_millions": 1.5,
        "megabytes": {"fp32": 6.0, "fp16": 3.0},
        "checkpoint": "c",
        "samples_per_second": 12.5,
        "goodput": 0.9,
        "rejected": {"corrupt image": 3},
    },
    "eval": {"metrics": METRICS, "num_pairs": 1234, "params_millions": 1.5, "megabytes": {"fp16": 3.0}},
    "compare": {"student": METRICS, "teacher": METRICS, "student_over_teacher": 0.875},
    "tune": {"trials": TRIALS, "front": FRONT, "best": FRONT[0], "hypervolume": 0.4, "objective": OBJECTIVE},
    "smoke": {
        "objective": OBJECTIVE,
        "trials": TRIALS,
        "front": FRONT,
        "best": FRONT[0],
        "hypervolume": 0.4,
        "student": METRICS,
        "teacher": METRICS,
        "student_over_teacher": float("nan"),
    },
    "predict": {"image": "reef.jpg", "found": [{"phrase": "fish", "instances": 1, "scores": [0.93], "pixels": [7]}]},
}


def written(directory: Path, verb: str, **more: object) -> tuple[dict, str]:
    write_report(directory, {"verb": verb, "seconds": 61.0, **REPORTS[verb], **more})
    return json.loads((directory / "report.json").read_text()), (directory / "report.html").read_text()


def without_data(page: str) -> str:
    return re.sub(r"data:[\w/+]+;base64,[\w+/=]+", "", page)


def test_a_report_says_whose_it_is_and_what_made_it(tmp_path: Path):
    report, _ = written(tmp_path, "eval")
    assert (report["verb"], report["status"], report["run_dir"]) == ("eval", "ok", str(tmp_path))
    assert report["seconds"] == 61.0
    assert report["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert written(tmp_path, "train", status="stopped")[0]["status"] == "stopped"


@pytest.mark.parametrize("verb", REPORTS)
def test_no_page_asks_the_network_for_anything(verb: str, tmp_path: Path):
    figure = tmp_path / "figures" / "curves.png"
    figure.parent.mkdir()
    Image.new("RGB", (8, 8)).save(figure)
    (tmp_path / "config.yaml").write_text("name: x\n")
    _, page = written(tmp_path, verb, figures=["figures/curves.png"])
    # The scripts of a search: test_charts.py looks at them, and at what a browser asks for.
    page = re.sub(r"<script\b.*?</script>", "", without_data(page), flags=re.S)
    assert "http:" not in page
    assert "https:" not in page
    assert "//" not in re.sub(r"/\*.*?\*/", "", page).replace(str(tmp_path), "")
    assert not re.search(r"<(script|link|iframe|object)\b|@import|url\(", page)
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources == [""]  # the one picture, its data taken out


def test_numbers_that_are_none_become_null(tmp_path: Path):
    report, page = written(tmp_path, "train")
    assert report["metrics"]["presence_f1"] is None
    assert "nan" not in without_data(page).lower()
    report, _ = written(tmp_path, "smoke", extra=[float("inf"), 1.0])
    assert report["student_over_teacher"] is None
    assert report["extra"] == [None, 1.0]


def test_values_of_other_libraries_become_plain_json():
    value = {
        "a": np.float32(0.5),
        "b": torch.tensor([1, 2]),
        "c": (np.int64(3), Path("x")),
        4: np.array([np.nan]),
        "d": True,
    }
    assert jsonable(value) == {"a": 0.5, "b": [1, 2], "c": [3, "x"], "4": [None], "d": True}
    assert type(jsonable(np.int64(3))) is int
    assert type(jsonable(True)) is bool


def test_the_page_shows_numbers_before_and_after(tmp_path: Path):
    _, page = written(tmp_path, "train")
    row = re.search(r"<tr><td>mIoU, all pairs</td><td>([^<]*)</td><td>([^<]*)</td></tr>", page)
    assert row is not None
    assert row.groups() == ("0.1", "0.6123")


def test_the_page_shows_what_was_set_aside_and_where_to_look(tmp_path: Path):
    trained, prepared = written(tmp_path, "train")[1], written(tmp_path, "prepare")[1]
    assert "<td>corrupt image</td><td>3</td>" in trained
    assert "<td>bad</td><td>2</td>" in prepared
    assert ("rejected.jsonl" in trained, "rejected.jsonl" in prepared) == (False, True)


def test_the_page_shows_what_the_student_keeps(tmp_path: Path):
    assert "87.5 %" in written(tmp_path, "compare")[1]


def test_trials_on_the_front_stand_out_and_failed_ones_come_last(tmp_path: Path):
    _, page = written(tmp_path, "tune")
    rows = re.findall(r'<tr( class="marked")?><td>(\d+)</td><td>(\w+)</td>', page)
    assert rows == [(' class="marked"', "000", "done"), ("", "001", "failed")]


def test_trials_are_ranked_by_the_quality_that_was_searched_for(tmp_path: Path):
    def trial(name: str, all_pairs: float, presence: float) -> dict:
        metrics = {"miou_all": all_pairs, "presence_f1": presence}
        return {"trial": name, "state": "done", "config": {}, "metrics": metrics, "params_millions": 1.0}

    trials = [trial("000", 0.9, 0.2), trial("001", 0.3, 0.8)]
    front = [{"trial": "001", "miou_all": 0.3, "presence_f1": 0.8}]
    searched = {"trials": trials, "front": front, "objective": {"quality": "presence_f1"}}
    _, page = written(tmp_path, "tune", **searched)
    assert re.findall(r"<td>(\d+)</td><td>done</td><td>([\d.]+)</td>", page) == [("001", "0.8"), ("000", "0.2")]
    assert "<th>Presence F1</th>" in page
    assert "<b>0.800</b><span>Presence F1</span>" in page


def test_figures_are_inlined_with_their_captions(tmp_path: Path):
    folder = tmp_path / "figures"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (400, 600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "panel_01.png")
    Image.new("RGB", (4, 4), "red").save(folder / "curves.png")
    captions = {"figures/panel_01.png": "a <fish> & chips"}
    _, page = written(tmp_path, "train", figures=["figures/panel_01.png", "figures/curves.png"], captions=captions)
    assert page.count("data:image/jpeg;base64,") == 1  # the large one
    assert page.count("data:image/png;base64,") == 1
    assert "a &lt;fish&gt; &amp; chips" in page
    assert page.index("data:image/png") < page.index("data:image/jpeg")  # charts before pictures


def test_the_configuration_is_on_the_page_and_escaped(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("name: <b>bold</b>\n")
    assert "name: &lt;b&gt;bold&lt;/b&gt;" in written(tmp_path, "train")[1]


def test_the_page_of_a_search_shows_its_ranges_and_what_all_trials_share(tmp_path: Path):
    (tmp_path / "search.yaml").write_text("space:\n  distillation.temperature: {uniform: [1.0, 6.0]}\n")
    (tmp_path / "config.yaml").write_text("name: shared\n")
    for verb in ("tune", "smoke"):
        _, page = written(tmp_path, verb)
        assert page.index("uniform: [1.0, 6.0]") < page.index("name: shared")
    assert "uniform" not in written(tmp_path, "eval")[1]  # left there by another run


def test_a_report_replaces_the_one_before_and_leaves_nothing_else(tmp_path: Path):
    written(tmp_path, "train")
    written(tmp_path, "eval")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]
    assert json.loads((tmp_path / "report.json").read_text())["verb"] == "eval"


def test_flat_numbers_have_dotted_names():
    tree = {"a": {"b": 1}, "c": [{"d": 2}], "e": [3, 4], "f": []}
    assert dict(flat(tree)) == {"a.b": 1, "c.0.d": 2, "e": [3, 4], "f": []}


def test_versions_leave_out_what_is_not_installed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sam3dist.report.PACKAGES", ("numpy", "no-such-package-anywhere"))
    assert versions().keys() == {"sam3dist", "python", "numpy"}
    assert versions()["numpy"] == np.__version__


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (0.123456, "0.1235"),
        (1234.5, "1,234"),
        (1234567, "1,234,567"),
        (True, "yes"),
        ([1, 0.5], "1, 0.5"),
        ("text", "text"),
    ],
)
def test_values_are_shown_as_readers_want_them(value: object, text: str):
    assert shown(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.21, "4.2 s"), (61, "1 min 1 s"), (7500, "2 h 5 min"), (59.4, "59.4 s")]
)
def test_durations_are_told_in_two_units(seconds: float, text: str):
    assert duration(seconds) == text
