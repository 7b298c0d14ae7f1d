"""The teacher, asked once about everything: shards -> a store of its answers. `python -m cluster.teach PRESET ...`.

A Ray Data job over shards, not pixels: each actor holds the teacher, and decodes a shard in threads of its own beside
it, for the reasons of streams.py. A shard's answers appear whole or not at all, so a job that was killed goes on where
it was.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.data
from ray.data import ActorPoolStrategy

from cluster import job
from cluster.environment import worker_environment
from cluster.mistakes import persons_mistake
from cluster.preflight import check_resources
from cluster.session import session
from cluster.taught import answers_folder, wanted
from cluster.trainer import absolute_paths
from sam3dist.config.load import load_preset, to_yaml, with_overrides
from sam3dist.data.rejects import Rejects
from sam3dist.data.shards import RowGroup, Shards, open_shards
from sam3dist.errors import ConfigError, DataError
from sam3dist.report import write_report
from sam3dist.teaching.fidelity import Fidelity
from sam3dist.teaching.store import (
    COUNTS,
    MANIFEST,
    Identity,
    answers_path,
    read_identity,
    require_same,
    write_identity,
    write_json,
)

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillConfig

Progress = Callable[[int, int], None]
"""Told of the rows done, and how many there are."""
POLL_S = 1.0
EVERY_S = 10.0


def run_teaching(
    config: DistillConfig, told: Progress | None = None, with_features: bool | None = None
) -> dict[str, Any]:
    """What report.json says of a teaching: pairs, bytes_per_pair, bytes_per_image, fidelity, recomputed, rejected, ...

    Its goodput is the share of the wall time of this call, times the teachers side by side, in which they computed;
    None where all shards were finished before.

    Asks the teacher about every phrase of `data.train` and writes to `teacher.answers`, by default `answers` inside
    `data.train`, as many shards side by side as `strategy.num_workers`. Features are stored where `distillation.gamma`
    is above 0, unless `with_features` says otherwise. The same call again leaves finished shards as they are and makes
    the others. Connects to a cluster (`session`) unless the process is connected. Raises DataError for a folder with
    the answers of something else, and where more rows than `data.max_rejected_share` cannot be used; ConfigError,
    CheckpointError and ResourceError before it starts.
    """
    started = time.perf_counter()
    if config.data.train is None:
        raise ConfigError("data.train: names no shards; the teacher is asked about those of `sam3dist prepare`.")
    config = with_overrides(config, absolute_paths(config))
    shards = open_shards(str(config.data.train))
    folder = answers_folder(config)
    identity = claimed(folder, wanted(config, with_features), config)
    with session(config.run):
        check_resources(config.strategy, wait_s=config.run.wait_for_nodes_s)
        said = _taught(config, folder, identity, shards, told)
    for part in folder.glob("*.tmp"):
        part.unlink()  # of actors that were killed
    asking = sum(shard["asking_seconds"] for shard in said)
    room = (time.perf_counter() - started) * min(config.strategy.num_workers, len(said))
    return {
        "store": str(folder),
        **_completed(folder, said, config.data.max_rejected_share),
        "asking_seconds": asking,
        "goodput": asking / room if asking else None,
    }


def claimed(folder: Path, fresh: Identity, config: DistillConfig) -> Identity:
    """What the store in a folder is, or now will be, of; DataError where that is not what is wanted."""
    if read_identity(folder) is None:
        folder.mkdir(parents=True, exist_ok=True)
        foreign = next((path.name for path in folder.iterdir() if path.suffix != ".tmp"), None)
        if foreign is not None:
            raise DataError(f"{folder}: holds {foreign!r} and no answers; give an empty directory in teacher.answers.")
        write_identity(folder, fresh)
    # It may have features that this configuration does not need.
    return require_same(folder, fresh, config.teacher.source)


def _taught(
    config: DistillConfig, folder: Path, identity: Identity, shards: Shards, told: Progress | None
) -> list[dict[str, Any]]:
    """What the file of answers to each shard says of itself."""
    strategy = config.strategy
    by_file = {path: tuple(groups) for path, groups in groupby(shards.row_groups, key=lambda group: group.path)}
    _hush()
    tally = _Tally.remote()  # type: ignore[attr-defined]
    dataset = ray.data.from_items([{"shard": path} for path in by_file], override_num_blocks=len(by_file))
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    answers = dataset.map_batches(
        _Teacher,
        fn_constructor_args=(config, folder, identity, by_file, tally),
        batch_size=1,
        compute=ActorPoolStrategy(size=min(strategy.num_workers, len(by_file))),
        num_cpus=strategy.cpus_per_worker,
        num_gpus=float(strategy.use_gpu),
        runtime_env={"env_vars": worker_environment(strategy)},
    )
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(answers.take_all)
        while not result.done():
            if told is not None:
                told(ray.get(tally.total.remote()), shards.rows)
            wait([result], timeout=POLL_S)
    try:
        found = [json.loads(row["said"]) for row in result.result()]
    except Exception as error:
        mistake = persons_mistake(error)
        if mistake is None:
            raise
        raise mistake from error
    if told is not None:
        told(shards.rows, shards.rows)
    return sorted(found, key=lambda said: str(said["file"]))


def _hush() -> None:
    """Leave Ray Data's remarks about its own progress to its log file."""
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.ERROR)


@ray.remote(num_cpus=0)
class _Tally:
    """Rows done by all actors."""

    def __init__(self) -> None:
        self.rows = 0

    def add(self, rows: int) -> None:
        self.rows += rows

    def total(self) -> int:
        return self.rows


class _Teacher:
    """One actor: holds the teacher and answers one shard after the other."""

    def __init__(
        self,
        config: DistillConfig,
        folder: Path,
        identity: Identity,
        by_file: Mapping[str, Sequence[RowGroup]],
        tally: Any,
    ) -> None:
        from sam3dist.teaching.teachers import open_teacher

        self.teacher = open_teacher(config.teacher, "cuda" if config.strategy.use_gpu else "cpu")
        self.config, self.folder, self.identity, self.by_file, self.tally = config, folder, identity, by_file, tally

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        from sam3dist.teaching.teach import teach_shard

        (shard,) = batch["shard"]
        said = teach_shard(
            self.by_file[shard],
            answers_path(self.folder, Path(shard).name),
            self.teacher,
            self.identity.image_size,
            self.identity.features,
            self.config.data,
            self.config.eval,
            lambda rows: self.tally.add.remote(rows),
        )
        return {"said": [json.dumps(said)]}


def _completed(folder: Path, said: list[dict[str, Any]], max_rejected_share: float) -> dict[str, Any]:
    """Write the manifest, which makes the store complete; gives the report."""
    sums = {name: sum(shard[name] for shard in said) for name in COUNTS}
    rejects = Rejects()
    fidelity = Fidelity()
    for shard in said:
        rejects.by_reason.update(shard["rejected"])
        fidelity = fidelity.plus(Fidelity(**shard["fidelity"]))
    rejects.by_kind["row"] = rejects.by_reason.total()
    rejects.check("row", sums["rows"], max_rejected_share, "data.max_rejected_share")
    stored = sums["answer_bytes"] + sums["feature_bytes"]
    files = [{name: shard[name] for name in ("file", "bytes", "sha256")} for shard in said]
    report = {**sums, "rejected": dict(sorted(rejects.by_reason.items())), "fidelity": fidelity.means()}
    write_json(folder / MANIFEST, {**report, "shards": files})
    return {
        **report,
        "answer_bytes_per_pair": sums["answer_bytes"] / max(sums["pairs"], 1),
        "bytes_per_pair": stored / max(sums["pairs"], 1),
        "bytes_per_image": stored / max(sums["rows"], 1),
        "shards": len(said),
        "recomputed": sum(shard["recomputed"] for shard in said),
    }


def work(words: Sequence[str]) -> Path:
    started = time.perf_counter()
    (preset,), overrides = job.split(words, "PRESET")
    config = with_overrides(load_preset(preset), overrides)
    directory = job.lasting(config.run.dir or f"runs/teach-{config.name}")
    last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last > EVERY_S:
            last = time.monotonic()
            print(f"rows answered: {done} of {total}", flush=True)

    result = run_teaching(config, tell)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    write_report(directory, {"verb": "teach", "seconds": time.perf_counter() - started, **result})
    print(job.numbers(result))
    return directory


if __name__ == "__main__":
    job.run(work)
