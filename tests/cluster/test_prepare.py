"""Shards made by a task of the cluster are those made on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.prepare import work
from sam3dist.data.prepare import prepare
from sam3dist.data.samples.write import write_scenes
from sam3dist.data.settings import PrepareSettings
from sam3dist.errors import ConfigError, DataError
from tests.sam3dist.promised import assert_promised


def test_a_key_of_a_run_is_refused_before_a_cluster_is_asked(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"data.max_pixels: has no effect on prepare"):
        work(["pairs.json", "images", str(tmp_path / "out"), "data.max_pixels=9"])


@pytest.mark.slow
def test_a_job_prepares_what_the_verb_does(joined: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pairs, images = write_scenes(tmp_path, images=4, seed=3, side=64)
    expected = prepare(pairs, images, tmp_path / "here", PrepareSettings(rows_per_group=2))
    out = tmp_path / "there"
    assert work([str(pairs), str(images), str(out), "rows_per_group=2"]) == out
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["rows"] == 4
    assert manifest["content_sha256"] == expected["content_sha256"]
    for shard in out.glob("*.parquet"):
        assert shard.read_bytes() == (tmp_path / "here" / shard.name).read_bytes()
    report = json.loads((out / "report.json").read_text())
    assert_promised(report)
    assert (report["verb"], report["status"], report["phrases"]) == ("prepare", "ok", expected["phrases"])
    assert f"rows 4  phrases {expected['phrases']}" in capsys.readouterr().out

    with pytest.raises(DataError, match=r"gone.json: no such file"):
        work([str(tmp_path / "gone.json"), str(images), str(out)])
