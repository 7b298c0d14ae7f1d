"""The state of a search, put beside its checkpoints and taken from there."""

from pathlib import Path

import pytest

from cluster.mirror import Mirror, restore
from sam3dist.engine.folder import CheckpointFolder
from sam3dist.errors import CheckpointError
from tests.object_store import object_store, set_keys


def search(run_dir: Path) -> None:
    (run_dir / "tune" / "trial").mkdir(parents=True)
    (run_dir / "tune" / "state.json").write_text("state")
    (run_dir / "tune" / "trial" / "result").write_text("0.5")
    (run_dir / "optuna.journal").write_text("study")
    (run_dir / "trials").mkdir()
    (run_dir / "trials" / "weights").write_text("large")


def test_a_search_is_found_again_in_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    set_keys(monkeypatch)
    search(tmp_path / "first")
    with object_store() as store:
        folder = CheckpointFolder(store.url(f"{tmp_path.name}/search"))
        assert not restore(tmp_path / "second", folder)
        mirror = Mirror(tmp_path / "first", ("tune", "optuna.journal", "rungs.json"), folder)
        mirror.on_trial_result()
        (tmp_path / "first" / "optuna.journal").write_text("more")
        mirror.on_trial_result()  # too soon
        assert restore(tmp_path / "second", folder)
        assert (tmp_path / "second" / "optuna.journal").read_text() == "study"
        mirror.on_trial_complete()
        assert restore(tmp_path / "second", CheckpointFolder(folder.location))
    found = {p.relative_to(tmp_path / "second").as_posix() for p in (tmp_path / "second").rglob("*") if p.is_file()}
    assert found == {"tune/state.json", "tune/trial/result", "optuna.journal"}
    assert (tmp_path / "second" / "optuna.journal").read_text() == "more"


def test_a_store_that_fails_is_told_and_holds_nothing_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    search(tmp_path / "first")
    (tmp_path / "file").touch()
    Mirror(tmp_path / "first", ("tune",), CheckpointFolder(tmp_path / "file")).on_experiment_end()
    assert "the search's state could not be stored" in capsys.readouterr().err


def test_what_is_no_archive_is_a_checkpoint_error(tmp_path: Path):
    folder = CheckpointFolder(tmp_path)
    folder.put("search.tar", b"no archive at all" * 99)
    with pytest.raises(CheckpointError, match=r"search.tar: cannot be unpacked"):
        restore(tmp_path / "second", folder)
