"""What of a folder is uploaded for a job."""

from __future__ import annotations

import json
import os
from pathlib import Path
from shutil import copy
from zipfile import ZipFile

import pytest
from ray._private.runtime_env.packaging import create_package

from cluster import upload as uploading
from cluster.upload import pack, require_uploaded, survey
from sam3dist.data.prepare import prepare
from sam3dist.data.samples.write import scene_shards, write_scenes
from sam3dist.data.settings import PrepareSettings
from sam3dist.engine.loggers import History
from sam3dist.errors import ConfigError
from sam3dist.report import write_report
from sam3dist.teaching.store import Identity, write_identity
from tests.sam3dist.runs import run, settings

REPOSITORY = Path(__file__).resolve().parents[2]


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("content")


def packed(folder: Path) -> set[str]:
    """The names in the package of a folder."""
    found = survey(folder)
    package = folder.parent / "package.zip"
    pack(found, package)
    assert package.stat().st_size == found.bytes
    with ZipFile(package) as archive:
        assert archive.testzip() is None
        return set(archive.namelist())


def refusal(words: list[str], folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        require_uploaded(survey(folder), words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("by_ray", [True, False], ids=["ray job submit heeds .gitignore", "sam3dist submit"])
def test_the_uploaded_folder_has_the_code_but_neither_shards_nor_runs(by_ray: bool, tmp_path: Path):
    folder = tmp_path / "folder"
    code = {"cluster/train.py", "search_spaces/full.yaml", "sam3dist/data/shards.py"}
    write(folder, *code, ".venv/lib/big.so", "runs/x/model", "shards/train/0.parquet", "build/x")
    write(folder, "cluster/__pycache__/x.pyc", ".pytest_cache/x", "own.egg-info/x")
    if by_ray:
        copy(REPOSITORY / ".gitignore", folder)
        create_package(str(folder), tmp_path / "package.zip", include_gitignore=True)
        with ZipFile(tmp_path / "package.zip") as archive:
            names = {name for name in archive.namelist() if not name.endswith("/")}
        assert names - {".gitignore"} == code
    else:
        assert packed(folder) == code


def test_data_and_checkpoints_are_known_by_what_is_in_them(
    tiny_teacher: object, tiny_teacher_dir: Path, tmp_path: Path
):
    folder = tmp_path / "folder"
    write(folder, "mine.yaml", "notes/report.json", "notes/manifest.json", "code/config.json", "code/a.py")
    prepare(*write_scenes(tmp_path / "scenes", 2, seed=0, side=64), folder / "my data" / "train[1]", PrepareSettings())
    (folder / "answers").mkdir()
    write_identity(folder / "answers", Identity("teacher", "fp32", 112, "data", ()))
    run(settings(optim={"steps": 1}), tiny_teacher, folder / "saved")  # type: ignore[arg-type]
    write_report(folder / "done", {"verb": "eval", "seconds": 1.0})
    begun = History(folder / "begun")
    begun.start(0)
    write(folder, "begun/config.yaml", "search/search.yaml", "search/config.yaml")
    os.symlink(tiny_teacher_dir, folder / "linked")
    os.symlink(folder, folder / "notes" / "around")

    found = survey(folder)
    assert found.left_out == {
        "my data/train[1]": "shards",
        "answers": "stored answers",
        "saved/step-00000001": "a checkpoint",
        "done": "a run",
        "begun": "a run",
        "search": "a run",
        "linked": "a network",
    }
    code = {"mine.yaml", "notes/report.json", "notes/manifest.json", "code/config.json", "code/a.py"}
    assert packed(folder) - {"saved/manifest.json"} == code


def test_the_repository_goes_with_its_embedded_teacher():
    found = survey(REPOSITORY)
    assert found.has("sam3dist/data/samples/teacher/model.safetensors")
    assert found.has("cluster")
    assert not any(path.startswith((".git/", "runs/")) for path in found.sizes)
    assert not any(path.startswith("sam3dist") for path in found.left_out)


def test_the_same_files_give_the_same_package_and_scripts_stay_executable(tmp_path: Path):
    write(tmp_path / "folder", "run.sh", "b/c.py")
    (tmp_path / "folder" / "run.sh").chmod(0o755)
    pack(survey(tmp_path / "folder"), tmp_path / "one.zip")
    os.utime(tmp_path / "folder" / "b" / "c.py", (1, 1))
    pack(survey(tmp_path / "folder"), tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with ZipFile(tmp_path / "one.zip") as archive:
        assert archive.getinfo("run.sh").external_attr >> 16 & 0o777 == 0o755


def test_too_much_is_refused_with_the_largest_folders_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write(tmp_path / "folder", "code/a.py")
    for name, size in (("pictures/cats/1.jpg", 3000), ("pictures/cats/deep/2.jpg", 4000), ("notes.pdf", 2000)):
        write(tmp_path / "folder", name)
        (tmp_path / "folder" / name).write_bytes(bytes(size * 1000))
    monkeypatch.setattr(uploading, "LIMIT_BYTES", 8_000_000)
    found = survey(tmp_path / "folder")
    with pytest.raises(ConfigError) as caught:
        pack(found, tmp_path / "package.zip")
    said = str(caught.value)
    assert "9.0 MB are above the 8.0 MB that Ray takes" in said
    assert "most of it in pictures/cats 7.0 MB, notes.pdf 2.0 MB, code 0.0 MB" in said
    assert ".rayignore" in said
    assert not (tmp_path / "package.zip").exists()
    (tmp_path / "folder" / ".rayignore").write_text("/pictures/\n")
    assert packed(tmp_path / "folder") == {".rayignore", "code/a.py", "notes.pdf"}


def test_words_that_name_what_stays_here_are_refused(tmp_path: Path):
    shards = scene_shards(tmp_path / "mine", 2, seed=0, side=64).relative_to(tmp_path)
    write(tmp_path, "mine/space.yaml", "small/x", ".rayignore", "huge/x")
    (tmp_path / ".rayignore").write_text("huge")
    assert refusal([f"data.train={shards}"], tmp_path).startswith(
        f"data.train={shards}: stays on this machine (shards); "
    )
    assert "(shards)" in refusal(["embedded", f"{shards}/manifest.json"], tmp_path)
    assert "huge: stays on this machine (left out)" in refusal(["run.dir=huge"], tmp_path)
    fine = [
        "small",
        "mine/space.yaml",
        "run.dir=runs/new",
        f"data.train={tmp_path / shards}",
        "space.x={uniform: [1, 2]}",
    ]
    require_uploaded(survey(tmp_path), [*fine, "data.val=" + "x" * 5000, "data.val=../elsewhere", "run.dir=."])


def test_a_folder_that_is_none_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"submit.working_dir=.*gone: no such folder"):
        survey(tmp_path / "gone")


def test_json_that_is_not_ours_is_code(tmp_path: Path):
    for number, content in enumerate(({"shards": 1}, [1], "x")):
        write(tmp_path, f"{number}/manifest.json")
        (tmp_path / str(number) / "manifest.json").write_text(json.dumps(content))
    assert not survey(tmp_path).left_out
