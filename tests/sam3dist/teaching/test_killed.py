import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sam3dist.data.prepare import PrepareSettings, prepare
from sam3dist.data.samples.write import write_scenes

ROOT = Path(__file__).resolve().parents[3]
KILLS = 20


@pytest.mark.long
def test_killed_at_twenty_random_moments_and_resumed_the_bytes_are_those_of_one_run(
    tiny_teacher_dir: Path, tmp_path: Path
):
    shards = tmp_path / "shards"
    settings = PrepareSettings(rows_per_group=2, rows_per_shard=4)
    prepare(*write_scenes(tmp_path / "scenes", 24, seed=4, side=112), shards, settings)
    script = Path(__file__).with_name("kill_and_resume.py")
    words = [sys.executable, str(script), str(tiny_teacher_dir), str(shards), str(tmp_path / "out"), str(KILLS)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["files"] == 12  # six shards and what each says of itself
    assert found["kept"] >= KILLS  # some of them while later shards were under way
