import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from sam3dist import cli
from sam3dist.cli import VERBS, _persons_mistake, main
from sam3dist.config.distill import DistillConfig
from sam3dist.config.load import load_preset, with_overrides
from sam3dist.data.samples.write import write_scenes
from sam3dist.data.shards import open_shards
from sam3dist.errors import CheckpointError, ConfigError
from sam3dist.models.source import resolve
from sam3dist.verbs.grammar import Verb, run_dir, slug, split
from tests.sam3dist.promised import assert_promised

NAMES = [verb.name for verb in VERBS]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs go to a directory of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SAM3DIST_DEBUG", raising=False)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_scenes(tmp_path_factory.mktemp("scenes"), images=6, seed=21, side=64)


@pytest.fixture(scope="module")
def shards(scenes: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "val"
    assert main(["prepare", str(scenes[0]), str(scenes[1]), str(out)]) == 0
    return out


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a mistake ends in."""
    assert main(words) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("sam3dist: ")
    assert "Traceback" not in captured.err + captured.out
    return lines[0]


def report_in(directory: str | Path) -> dict:
    report = json.loads((Path(directory) / "report.json").read_text())
    assert report["status"] == "ok"
    assert_promised(report)
    assert (Path(directory) / "report.html").is_file()
    return report


def test_the_verbs_are_those_of_the_design():
    assert NAMES[:5] == ["smoke", "prepare", "teach", "train", "tune"]
    assert NAMES[5:] == ["eval", "compare", "predict", "weights", "config", "sizes", "submit"]


@pytest.mark.parametrize("name", NAMES)
def test_every_verb_has_help_with_examples(name: str, capsys: pytest.CaptureFixture[str]):
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: sam3dist {name}")
    assert "[dotted.key=value ...]" in text
    assert f"  sam3dist {name}" in text.split("examples:")[1]
    assert max(len(line) for line in text.splitlines()) <= 130


@pytest.mark.parametrize("verb", VERBS, ids=NAMES)
def test_every_example_is_accepted_by_the_grammar(verb: Verb):
    import shlex

    for example in verb.examples:
        words = shlex.split(example.split(" > ")[0])
        assert words[:2] == ["sam3dist", verb.name]
        arguments, _ = split(words[2:])
        cli._parser(verb).parse_args(arguments)


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n{name} " in text for name in NAMES)
    assert main([]) == 2
    assert main(["--version"]) == 0


MISTAKES = [
    (["trian", "small"], "did you mean train?"),
    (["--bogus"], "--bogus"),
    (["smoke", "extra"], "unrecognized arguments: extra"),
    (["smoke", "trails=2"], "did you mean trials?"),
    (["smoke", "optim.steps=0"], "optim.steps=0: must be a whole number of at least 1"),
    (["prepare", "x.json", "images"], "OUT_DIR"),
    (["prepare", "gone.json", "images", "out"], "gone.json: no such file"),
    (["prepare", "gone.json", "images", "out", "thread=2"], "did you mean threads?"),
    (["prepare", "gone.json", "images", "out", "threads=0"], "threads=0 must be 1 or more"),
    (["prepare", "gone.json", "images", "out", "run.dir=x"], "no effect on prepare"),
    (["train"], "PRESET"),
    (["train", "smal"], "did you mean small?"),
    (["train", "small", "distillation.temprature=6"], "did you mean distillation.temperature?"),
    (["train", "small", "distillation.temperature=0"], "must be a number above 0 and at most 100"),
    (["train", "small", "strategy.zero_stage=3"], "only known with strategy.kind=deepspeed"),
    (["train", "small", "optim.steps=1", "optim.steps=2"], "optim.steps: given twice (1 and 2)"),
    (["tune", "gone.yaml"], "gone.yaml: no such search space"),
    (["eval", "embedded"], "SHARDS"),
    (["eval", "embedded", "gone"], "gone: no manifest.json in it"),
    (["eval", "embedded", "gone", "optim.steps=3"], "optim.steps: has no effect on eval"),
    (["eval", "embedded", "gone", "eval.threshold=2"], "eval.threshold=2: must be a number above 0 and below 1"),
    (["compare", "a", "b"], "SHARDS"),
    (["compare", "a", "b", "gone"], "gone: no manifest.json in it"),
    (["predict", "embedded", "reef.jpg"], "PHRASE"),
    (["sizes", "smal"], "did you mean small?"),
    (["sizes", "small", "optim.steps=3"], "optim.steps: has no effect on sizes, which takes student, run.dir."),
    (["sizes", "student.backbone=repvit"], "timm has no such network; did you mean repvit_m"),
    (["predict", "embedded", "reef.jpg", "fish"], "reef.jpg: cannot be read"),
    (["predict", "embedded", "reef.jpg", " "], "a PHRASE is empty"),
    (["config", "smal"], "did you mean small?"),
    (["config", "base", "optim.stepz=3"], "did you mean optim.steps?"),
    (["config", "optim.steps=3"], "give the preset"),
    (["submit"], "which verb?"),
    (["submit", "dance"], "submit dance: not a job"),
    (["submit", "train", "small", "run.address=10.0.0.1:6379"], "write http://HOST:8265"),
    (["submit", "train", "small", "submit.on_interupt=stop"], "did you mean submit.on_interrupt?"),
    (["submit", "train", "small", "submit.id"], "submit.id: write submit.KEY=VALUE"),
]


@pytest.mark.parametrize(("words", "told"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_a_mistake_ends_in_one_line_and_exit_code_2(words: list[str], told: str, capsys: pytest.CaptureFixture[str]):
    assert told in complaint(capsys, *words)
    assert not Path("runs").exists()


def test_a_mistake_in_a_model_or_image_is_named(shards: Path, capsys: pytest.CaptureFixture[str]):
    Path("notes.jpg").write_text("hello")
    assert "notes.jpg: corrupt image" in complaint(capsys, "predict", "embedded", "notes.jpg", "fish")
    Path("empty").mkdir()
    assert "has no config.json" in complaint(capsys, "eval", "empty", str(shards))
    assert "gone does not exist" in complaint(capsys, "eval", "gone", str(shards))


def test_the_traceback_is_shown_on_demand(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("SAM3DIST_DEBUG", "1")
    assert main(["train", "smal"]) == 2
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("SAM3DIST_DEBUG", "0")
    assert "did you mean small" in complaint(capsys, "train", "smal")


def test_our_own_mistake_shows_where_and_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("sam3dist.config.load.load_preset", broken)
    assert main(["config", "base"]) == 1
    assert "RuntimeError: a bug" in capsys.readouterr().err


def test_a_mistake_that_was_wrapped_on_its_way_is_still_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def wrapped(*_: object) -> None:
        try:
            raise ConfigError("optim.steps=0: two\nlines.")
        except ConfigError as error:
            raise RuntimeError("a worker died") from error

    monkeypatch.setattr("sam3dist.config.load.load_preset", wrapped)
    assert complaint(capsys, "config", "base") == "sam3dist: optim.steps=0: two lines."


def test_an_error_that_is_its_own_cause_ends_the_search_for_a_mistake():
    error = RuntimeError("a bug")
    error.__cause__ = error
    assert _persons_mistake(error) is None


def test_an_output_that_is_a_file_is_named(scenes: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    Path("taken").write_text("a file")
    assert "taken: is a file" in complaint(capsys, "prepare", str(scenes[0]), str(scenes[1]), "taken")


def test_a_run_directory_that_cannot_be_made_is_named(
    tiny_teacher_dir: Path, shards: Path, capsys: pytest.CaptureFixture[str]
):
    Path("taken").write_text("a file")
    assert main(["eval", str(tiny_teacher_dir), str(shards), "eval.max_images=1", "run.dir=taken/below"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "sam3dist: taken/below: not a directory."


def test_config_prints_yaml_that_is_a_preset(capsys: pytest.CaptureFixture[str]):
    assert main(["config", "small", "strategy.kind=fsdp", "optim.learning_rate=1e-4"]) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["strategy"]["kind"] == "fsdp"
    Path("mine.yaml").write_text(text)
    mine = load_preset("mine.yaml")
    assert (mine.optim.learning_rate, mine.student) == (1e-4, load_preset("small").student)
    assert main(["config"]) == 0
    assert "mobile" in capsys.readouterr().out


def test_prepare_reports_what_it_wrote(scenes: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    words = ["prepare", str(scenes[0]), str(scenes[1]), "out/train", "rows_per_group=2", "max_negatives_per_image=3"]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "out/train"
    report = report_in("out/train")
    manifest = json.loads(Path("out/train/manifest.json").read_text())
    assert report["rows"] == manifest["rows"] == 6
    assert report["positives"] + report["negatives"] == report["phrases"]
    assert report["negatives"] <= 3 * 6
    assert (report["rejected"], report["unchanged"]) == ({}, False)
    assert main(words) == 0
    assert report_in("out/train")["unchanged"] is True


def test_eval_reports_the_metrics(tiny_teacher_dir: Path, shards: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["eval", str(tiny_teacher_dir), str(shards), "eval.threshold=0.2", "run.dir=here"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "here"
    report = report_in("here")
    assert report["num_pairs"] == report["num_positive"] + report["num_negative"] == report["metrics"]["num_pairs"]
    assert report["num_pairs"] == json.loads((shards / "manifest.json").read_text())["phrases"]
    assert "miou_all" in out
    assert load_preset("here/config.yaml").eval.threshold == 0.2


@pytest.mark.parametrize("verb", ["eval", "compare"])
def test_progress_over_some_images_counts_their_phrases(
    verb: str, tiny_teacher_dir: Path, shards: Path, capsys: pytest.CaptureFixture[str]
):
    models = [str(tiny_teacher_dir)] * (1 if verb == "eval" else 2)
    assert main([verb, *models, str(shards), "eval.max_images=3", "eval.images_per_batch=1", "run.dir=here"]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if " of " in line]
    report = report_in("here")
    answers = report["num_pairs"] if verb == "eval" else 2 * report["student"]["num_pairs"]
    assert all(f" of {answers} (" in line for line in told)
    assert f": {answers} of" in told[-1]


@pytest.mark.parametrize("verb", ["eval", "compare"])
def test_rows_set_aside_are_counted_once(verb: str, tiny_teacher_dir: Path, scenes: tuple[Path, Path]):
    assert main(["prepare", str(scenes[0]), str(scenes[1]), "few", "rows_per_group=2", "rows_per_shard=2"]) == 0
    Path(open_shards("few").row_groups[0].path).write_bytes(b"no parquet")
    models = [str(tiny_teacher_dir)] * (1 if verb == "eval" else 2)
    assert main([verb, *models, "few", "data.max_rejected_share=0.5", "eval.max_images=5", "run.dir=aside"]) == 0
    assert report_in("aside")["rejected"] == {"corrupt shard": 2}
    assert "<td>corrupt shard</td><td>2</td>" in Path("aside/report.html").read_text()


def test_compare_reports_both_and_draws_where_they_differ(tiny_teacher_dir: Path, shards: Path):
    words = ["compare", str(tiny_teacher_dir), str(tiny_teacher_dir), str(shards), "eval.threshold=0.2"]
    assert main([*words, "run.figures=2", "eval.max_images=3"]) == 0
    model, data = slug(str(tiny_teacher_dir)), slug(str(shards))
    here = Path(f"runs/compare-{model}-{model}-{data}")
    report = report_in(here)
    assert report["student"] == report["teacher"]
    assert report["student_over_teacher"] == pytest.approx(1)
    assert len(report["figures"]) == 2
    assert all((here / figure).is_file() for figure in report["figures"])


def test_sizes_counts_presets_searches_and_shapes(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert main(["sizes", "smoke", "student.vision_depth=1"]) == 0
    report = report_in("runs/sizes-smoke")
    (one,) = report["compositions"]
    assert one["vision"] == "ViT 64/1/2"
    assert one["under_50_mb"] == {"int8": True, "int4": True}
    assert "ViT 64/1/2" in capsys.readouterr().out
    assert "Highlighted: under 50 MB" in Path("runs/sizes-smoke/report.html").read_text()

    backbone = "student.backbone=mobilenetv4_conv_small"
    assert main(["sizes", backbone, "student.image_size=256", "student.text_depth=2", "run.dir=here"]) == 0
    (one,) = report_in("here")["compositions"]
    assert one["name"] == "backbone=mobilenetv4_conv_small image_size=256 text_depth=2"
    assert (one["vision"], one["text"]) == ("mobilenetv4_conv_small, pyramid", "CLIP 1024/2")

    space = Path(__file__).parents[2] / "search_spaces" / "smoke.yaml"
    assert main(["sizes", str(space)]) == 0
    students = report_in("runs/sizes-search_spaces-smoke.yaml")["compositions"]
    found = {one["name"]: one["size"]["params_millions"] for one in students}
    assert set(found) == {*(f"smoke, seed {n}" for n in range(4)), "smoke, smallest", "smoke, largest"}
    assert found["smoke, smallest"] == min(found.values()) < max(found.values()) == found["smoke, largest"]


def test_predict_leaves_a_picture_and_annotations(
    tiny_teacher_dir: Path, scenes: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    image = sorted(scenes[1].iterdir())[0]
    assert main(["predict", str(tiny_teacher_dir), str(image), "red circle", "a dog", "eval.threshold=0.01"]) == 0
    here = Path(capsys.readouterr().out.splitlines()[-1])
    assert here.name == f"predict-{slug(str(tiny_teacher_dir))}-images-{image.stem}"
    report = report_in(here)
    assert [found["phrase"] for found in report["found"]] == ["red circle", "a dog"]
    document = json.loads((here / report["annotations"]).read_text())
    assert len(document["annotations"]) == sum(found["instances"] for found in report["found"]) > 0
    assert Image.open(here / report["figures"][0]).size == Image.open(image).size


def test_a_run_directory_stands_for_its_checkpoint(tiny_teacher_dir: Path, shards: Path):
    shutil.copytree(tiny_teacher_dir, "run/checkpoints/last")
    Path("run/report.json").write_text(json.dumps({"verb": "train", "checkpoint": "checkpoints/last"}))
    assert resolve("run") == "run/checkpoints/last"
    assert main(["eval", "run", str(shards), "eval.max_images=1"]) == 0
    best = {"verb": "tune", "best": {"checkpoint": str(tiny_teacher_dir)}}
    Path("run/report.json").write_text(json.dumps(best))
    assert resolve("run") == str(tiny_teacher_dir)
    assert resolve("embedded") == "embedded"
    Path("run/report.json").write_text(json.dumps({"verb": "eval"}))
    with pytest.raises(CheckpointError, match="names no checkpoint"):
        resolve("run")
    Path("run/report.json").write_text("[")
    with pytest.raises(CheckpointError, match="not a report of ours"):
        resolve("run")


def test_a_run_directory_that_was_moved_still_stands_for_its_checkpoint(
    shards: Path, capsys: pytest.CaptureFixture[str]
):
    checkpoint = Path("old/run/trials/003/checkpoints/checkpoint_7")
    checkpoint.mkdir(parents=True)
    written = json.dumps({"verb": "tune", "best": {"checkpoint": str(checkpoint.resolve())}})
    Path("old/run/report.json").write_text(written)
    assert resolve("old/run") == str(checkpoint.resolve())
    shutil.move("old/run", "new")
    assert resolve("new") == "new/trials/003/checkpoints/checkpoint_7"
    shutil.rmtree("new/trials")
    told = complaint(capsys, "eval", "new", str(shards))
    assert f"new: its report names {checkpoint.resolve()}, which is gone" in told


def test_words_with_a_key_are_overrides_and_all_else_are_arguments():
    words = ["a/b=c", "x.y=1", "yellow fish", "name=a=b", "./k=v", "--help", "data.train="]
    assert split(words) == (["a/b=c", "yellow fish", "./k=v", "--help"], {"x.y": "1", "name": "a=b", "data.train": ""})


def test_a_run_is_resumed_only_where_one_was_begun(tmp_path: Path):
    def resumed(**changes: str) -> DistillConfig:
        return with_overrides(DistillConfig(), {"run.resume": str(tmp_path / "run"), **changes})

    with pytest.raises(ConfigError, match=r"run.resume=.*: no run was begun there; to begin one, write run.dir="):
        run_dir(resumed(), "train", "x")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    assert run_dir(resumed(), "train", "x") == tmp_path / "run"
    with pytest.raises(ConfigError, match=r"run.resume=.* contradicts run.dir=other"):
        resumed(**{"run.dir": "other"})


def test_run_directories_have_plain_names():
    assert slug("facebook/sam3") == "facebook-sam3"
    assert slug("/data/runs/train-x/checkpoints/step 100/") == "checkpoints-step-100"
    assert slug("../..") == "run"


def environment() -> dict[str, str]:
    """Of a program of its own, with standard output buffered as usual."""
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    return {**inherited, "PYTHONPATH": str(Path(cli.__file__).parents[1])}


def test_what_a_verb_was_asked_about_makes_a_run_directory_of_its_own():
    config = load_preset("small")
    asked = ("runs/train-small", "shards/val"), ("runs/train-small", "shards/test"), ("embedded", "shards/val")
    assert [str(run_dir(config, "eval", *names)) for names in asked] == [
        "runs/eval-runs-train-small-shards-val",
        "runs/eval-runs-train-small-shards-test",
        "runs/eval-embedded-shards-val",
    ]
    named = config.model_copy(update={"run": config.run.model_copy(update={"dir": "here"})})
    assert run_dir(named, "eval", "embedded", "shards/val") == Path("here")


def test_the_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "sam3dist", "config", "smal"], env=environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "sam3dist: smal: no such preset; did you mean small?\n"


@pytest.mark.parametrize("words", [["config", "base"], ["config"], ["train", "--help"]], ids=" ".join)
def test_a_reader_that_leaves_early_is_no_error(words: list[str]):
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` does once it has read enough
    command = [sys.executable, "-m", "sam3dist", *words]
    done = subprocess.run(command, env=environment(), stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
