"""The charts of a made-up search: their numbers, what surrounds them in the page, and how a browser draws them."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sam3dist.charts import charts, library, trial_notes
from sam3dist.parallel import parallel
from sam3dist.report import write_report
from tests.sam3dist.made_up import OBJECTIVE, search, trial

NAMES = ["pareto", "finished", "hours", "importances", "parallel", "curves"]
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def written(directory: Path, report: dict[str, Any]) -> str:
    write_report(directory, report)
    return (directory / "report.html").read_text()


def drawn(report: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    return {chart.name: chart for chart in charts(report, run_dir)}


def data_of(page: str) -> dict[str, Any]:
    """What charts.js reads."""
    found = re.search(r'<script type="application/json" id="charts">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found[1])


def points(traces: list[dict[str, Any]]) -> dict[str, tuple[float, float, str]]:
    """Where each trial is and in which trace."""
    return {
        key: (x, y, trace["name"])
        for trace in traces
        if "customdata" in trace
        for key, x, y in zip(trace["customdata"], trace["x"], trace["y"], strict=True)
    }


def small_search(*trials: dict[str, Any], front: tuple[str, ...]) -> dict[str, Any]:
    chosen = [{**row, **row["metrics"]} for row in trials if row["trial"] in front]
    return {"verb": "tune", "seconds": 1.0, "trials": list(trials), "front": chosen, "objective": OBJECTIVE}


def test_the_plot_of_quality_against_size_has_every_measured_trial_in_its_kind(tmp_path: Path):
    report = small_search(
        trial("000", 0.5, 10),
        trial("001", 0.4, 20),
        trial("002", 0.3, 30, state="stopped"),
        trial("003", 0.2, 40, state="failed"),
        trial("004", None, None, state="refused"),
        trial("005", float("nan"), 50),
        front=("000",),
    )
    report |= {"teacher": {"miou_all": 0.8}, "sizes": {"teacher": {"params_millions": 800}}}
    chart = drawn(report, tmp_path)["pareto"]
    assert points(chart.traces) == {
        "000": (10, 0.5, "Pareto front"),
        "001": (20, 0.4, "beaten by another"),
        "002": (30, 0.3, "stopped early"),
        "003": (40, 0.2, "failed on its way"),
        "the teacher": (800, 0.8, "teacher"),
    }
    hollow = next(trace for trace in chart.traces if trace.get("name") == "stopped early")
    assert hollow["marker"]["symbol"] == "circle-open"
    assert chart.layout["xaxis"]["type"] == "log"
    left, right = chart.layout["xaxis"]["range"]
    assert 10**left < 10
    assert 10**right > 800


def test_the_plot_is_over_the_size_that_was_searched_for(tmp_path: Path):
    fast = trial("000", 0.5, 90) | {"size": 7.0, "latency_ms": 7.0}
    slow = trial("001", 0.6, 10, state="refused") | {"size": 80.0, "latency_ms": 80.0, "reason": "80 ms are too many."}
    report = small_search(fast, slow, front=("000",)) | {"objective": {**OBJECTIVE, "size": "latency_ms"}}
    report |= {"teacher": {"miou_all": 0.8}, "sizes": {"teacher": {"params_millions": 800, "megabytes": {"int4": 450}}}}
    chart = drawn(report, tmp_path)["pareto"]
    assert points(chart.traces) == {"000": (7, 0.5, "Pareto front"), "001": (80, 0.6, "refused after all")}
    assert chart.layout["xaxis"]["title"]["text"] == "latency (ms)"
    assert ["latency", "80 ms"] in trial_notes(report)["001"]["rows"]
    report["objective"] = {**OBJECTIVE, "size": "megabytes", "precision": "int4"}
    assert points(drawn(report, tmp_path)["pareto"].traces)["the teacher"] == (450, 0.8, "teacher")


def test_labels_of_the_front_keep_apart(tmp_path: Path):
    near = [trial(f"{index:03d}", 0.5 + index / 1000, 10 + index / 10) for index in range(5)]
    far = trial("009", 0.9, 100)
    report = small_search(*near, far, front=tuple(row["trial"] for row in [*near, far]))
    front = next(t for t in drawn(report, tmp_path)["pareto"].traces if t.get("name") == "Pareto front")
    assert front["text"] == ["000", "", "", "", "", "009"]


def test_what_is_said_of_a_trial_holds_its_state_quality_size_and_knobs():
    rows = trial("000", 0.51234, 12.5, **{"student.backbone": None, "data.flip": True, "optim.rate": 1e-4})
    refused = {**trial("001", None, None, state="refused"), "megabytes": None, "reason": "y" * 100}
    notes = trial_notes(small_search(rows, refused, front=("000",)))
    assert notes["000"] == {
        "title": "Trial 000",
        "trial": "000",
        "rows": [
            ["state", "done, on the front"],
            ["mIoU, all pairs", "0.5123"],
            ["parameters", "12.5 M"],
            ["MB in fp16", "25"],
            ["MB in int4", "6.25"],
            ["backbone", "none"],
            ["flip", "yes"],
            ["rate", "0.0001"],
        ],
    }
    assert notes["001"]["rows"][-1] == ["reason", "y" * 59 + "…"]


def test_parallel_lines_cross_each_axis_at_their_value_and_leave_gaps_for_missing_knobs():
    trials = [
        trial("000", 0.2, 1, **{"a.rate": 0.0, "a.same": 5}),
        trial("001", 0.4, 100, **{"a.rate": 10.0, "a.same": 5, "a.rare": "x"}),
        trial("002", None, 10, state="stopped", **{"a.rate": 5.0, "a.same": 5, "a.rare": "y"}),
        trial("003", None, None, state="refused", **{"a.rate": 99.0}),
    ]
    found = parallel(trials, "miou_all", "parameters (millions)")
    assert found is not None
    lines: dict[str, list[float | None]] = {}
    for trace in found.traces:
        for key, y in zip(trace["customdata"], trace["y"], strict=True):
            lines.setdefault(key, []).append(y)
    lines.pop(None, None)  # type: ignore[call-overload]
    shift = 0.03  # lines that meet are drawn that far apart, the first lowest
    wanted = {
        "000": [0 - shift, None, 0 - shift, 0 - shift],  # a.rate, a.rare, size on a log axis, quality
        "001": [1, 0, 1, 1],
        "002": [0.5 + shift, 1 + shift, 0.5 + shift, None],
    }
    assert lines == {name: pytest.approx(ys) for name, ys in wanted.items()}
    assert parallel(trials[:1], "miou_all", "size") is None


def test_curves_are_those_of_history_and_skip_what_was_not_measured(tmp_path: Path):
    report = search(tmp_path)
    chart = drawn(report, tmp_path)["curves"]
    found = [
        (x, y)
        for trace in chart.traces
        for key, x, y in zip(trace.get("customdata", ()), trace["x"], trace["y"], strict=False)
        if key == "005"
    ]
    lines = [json.loads(line) for line in (tmp_path / "trials/005/history.jsonl").read_text().splitlines()]
    assert found == [(line["step"], line["miou_all"]) for line in lines if line.get("miou_all") is not None]
    assert 600 not in dict(found)  # was null
    shutil.rmtree(tmp_path / "trials")
    assert "curves" not in drawn(report, tmp_path)


def test_an_empty_front_has_no_charts_but_says_why(tmp_path: Path):
    report = small_search(trial("000", None, None, state="refused") | {"reason": "too large & wide"}, front=())
    page = written(tmp_path, report)
    assert "1 refused. Reasons: 1× too large &amp; wide" in page
    assert "Plotly" not in page
    assert "<b>–</b><span>mIoU, all pairs</span>" in page


def test_reports_without_a_search_have_no_charts(tmp_path: Path):
    page = written(tmp_path, {"verb": "train", "seconds": 1.0, "metrics": {"miou_all": 0.5}})
    assert "Plotly" not in page
    assert len(page) < 20_000


def test_the_page_has_the_library_once_and_asks_the_network_for_nothing(tmp_path: Path):
    page = written(tmp_path, search(tmp_path))
    assert page.count(library()) == 1
    assert [chart["name"] for chart in data_of(page)["charts"]] == NAMES
    for name in NAMES:
        assert page.count(f'id="chart-{name}"') == 1
    rest = page.replace(library(), "")
    assert "https:" not in rest
    assert "http:" not in rest
    assert not re.search(r"<(link|iframe|object|script src)\b|@import|url\(", rest)
    # Whatever the library might want: the browser is told to refuse it.
    assert "Content-Security-Policy\" content=\"default-src 'none'; img-src data: blob:;" in page


def test_a_chart_replaces_the_picture_of_the_same(tmp_path: Path):
    from PIL import Image

    (tmp_path / "figures").mkdir()
    for name in ("pareto", "trials", "curves"):
        Image.new("RGB", (8, 8)).save(tmp_path / "figures" / f"{name}.png")
    figures = [f"figures/{name}.png" for name in ("pareto", "trials", "curves")]
    page = written(tmp_path, search(tmp_path) | {"figures": figures})
    assert page.replace(library(), "").count("data:image/png;base64,") == 1
    assert json.loads((tmp_path / "report.json").read_text())["figures"] == figures
    empty = small_search(trial("000", 0.5, state="stopped"), front=())
    assert written(tmp_path, empty | {"figures": figures}).count("data:image/png;base64,") == 3


def test_names_and_values_cannot_break_out_of_the_page(tmp_path: Path):
    rows = [trial(f"{HOSTILE}{index}", index / 10, 10 + index, **{"a.b": f"{HOSTILE}{index}"}) for index in range(9)]
    rows.append(trial("x", None, None, state="refused") | {"reason": HOSTILE})
    report = small_search(*rows, front=(rows[8]["trial"],))
    page = written(tmp_path, report).replace(library(), "")
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert page.count("</script>") == 3
    data = data_of(page)
    assert rows[0]["trial"] in data["trials"]  # whole, and only as text: charts.js never makes markup of it
    for chart in data["charts"]:
        shown = json.dumps([chart["figure"]["layout"], [trace.get("text") for trace in chart["figure"]["data"]]])
        assert "<img" not in shown  # plotly reads some markup in labels
        assert "<script" not in shown
    assert [path.name for path in (tmp_path / "recommended").iterdir()] != []
    assert all(path.parent.parent == tmp_path / "recommended" for path in tmp_path.rglob("card.md"))


PROBE = """<script>
const told = { errors: [] };
addEventListener("error", (event) => told.errors.push(String(event.message)));
addEventListener("securitypolicyviolation", (event) => told.errors.push(event.violatedDirective + event.blockedURI));
const complain = console.error;
console.error = (...words) => { told.errors.push(words.join(" ")); complain(...words); };
addEventListener("load", () => setTimeout(() => {
  const inside = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
  told.charts = [...document.querySelectorAll("[id^=chart-]")].map((box) => {
    const labels = [...box.querySelectorAll("text")].map((text) => text.getBoundingClientRect()).filter((r) => r.width);
    const overlaps = labels.filter((a, i) => labels.slice(i + 1).some((b) => inside(a, b))).length;
    const marks = box.querySelectorAll(".scatterlayer path, .barlayer path").length;
    return { name: box.id.slice(6), svgs: box.querySelectorAll("svg.main-svg").length, marks, overlaps };
  });
  const dot = document.querySelector("#chart-pareto .points path").getBoundingClientRect();
  const place = { bubbles: true, clientX: dot.x + dot.width / 2, clientY: dot.y + dot.height / 2 };
  const layer = document.querySelector("#chart-pareto .nsewdrag");
  for (const kind of ["mouseover", "mousemove"]) layer.dispatchEvent(new MouseEvent(kind, place));
  setTimeout(() => {
    const tip = document.querySelector(".tip");
    const frame = tip.getBoundingClientRect();
    told.tip = tip.hidden ? "" : tip.textContent;
    told.inside = frame.left >= 0 && frame.right <= innerWidth;
    told.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
    told.sideways = document.documentElement.scrollWidth - innerWidth;
    parent.postMessage(JSON.stringify(told), "*");
  }, 500);
}, 1000));
</script>"""
FRAME = """<body><iframe src="probed.html" style="width: WIDTHpx; height: 900px"></iframe><pre id="told"></pre><script>
addEventListener("message", (event) => { document.getElementById("told").textContent = event.data; });
</script></body>"""
"""A window of Chromium cannot be as narrow as a phone; a frame can."""


@pytest.fixture(scope="module")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium on the PATH")
    return found


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of twenty trials that says of itself, once it is drawn, what came of it."""
    directory = tmp_path_factory.mktemp("search")
    page = written(directory, search(directory))
    (directory / "probed.html").write_text(page.replace("<style>", PROBE + "<style>", 1))
    return directory


@pytest.mark.parametrize("width", [1200, 390])
def test_a_browser_draws_every_chart_without_an_error(chromium: str, probed: Path, width: int, tmp_path: Path):
    frame = probed / f"frame{width}.html"
    frame.write_text(FRAME.replace("WIDTH", str(width)))
    words = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--window-size=1400,1000"]
    words += ["--virtual-time-budget=15000", "--dump-dom", frame.as_uri()]
    ended = subprocess.run([chromium, *words], capture_output=True, text=True, timeout=200)
    found = re.search(r'<pre id="told">(.*?)</pre>', ended.stdout, re.S)
    assert found is not None, ended.stderr[-2000:]
    assert found[1], f"the page said nothing: {ended.stderr[-2000:]}"
    told = json.loads(html.unescape(found[1]))
    assert told["errors"] == []
    assert told["requests"] == []
    assert [chart["name"] for chart in told["charts"]] == NAMES
    for chart in told["charts"]:
        assert chart["svgs"] > 0, chart
        assert chart["marks"] > 0, chart
        assert chart["overlaps"] == 0, chart
    assert told["sideways"] <= 0  # only tables and the parallel axes scroll, inside their cards
    assert told["tip"].startswith("Trial ")
    assert "temperature" in told["tip"]
    assert told["inside"]
