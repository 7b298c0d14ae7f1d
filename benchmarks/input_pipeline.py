"""How fast batches come, as shares of the rate of decoding the same JPEGs and nothing else.

    python benchmarks/input_pipeline.py [--images 192] [--photographs DIR] [--sides 504 1008] [--threads 2]

"limit" decodes JPEG bytes in memory with our decoder, in as many threads. "ours" are the batches of a training worker
from shards, "ours + answers" those with the stored answers to four phrases an image, at SAM3's sizes; the references
that Ray hands a worker are made here, a few bytes each, so Ray has no part in it. The others read the same files with
as many worker processes, and give images only. All take turns, `--rounds` times, and each is stopped before the next
begins; ratios are medians over the rounds, since other work on the machine changes the rates. CPU time is that of the
process with its threads. Prints a table for each side and, last, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path

import numpy as np
from parts import made_answers, other_loaders
from PIL import Image

from sam3dist.config.distill import DataConfig
from sam3dist.data.batches import follow
from sam3dist.data.decode import decode_image
from sam3dist.data.masks import encode_mask
from sam3dist.data.prepare import PrepareSettings, prepare
from sam3dist.data.rows import Row
from sam3dist.data.samples.scenes import make_scene
from sam3dist.data.samples.vocabulary import COLOURS, SHAPES
from sam3dist.data.shards import Shards, open_shards, read_rows
from sam3dist.teaching.codec import encode_answers
from sam3dist.teaching.store import AnswerStore, AnswerWriter, Identity, RowAnswers, answers_path

POSITIVES, NEGATIVES = 5, 3
"""Phrases of an image."""
NAMES = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
WARM = 4
"""Batches taken before the clock starts, and left in the epoch when it stops: loaders run ahead by fewer."""


@dataclass(frozen=True)
class Material:
    """The same images in each form that is read."""

    paths: Sequence[Path]
    shards: Shards
    rows: Sequence[Row]
    store: AnswerStore


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=192, help="of 640 x 480 pixels, generated")
    parser.add_argument("--photographs", type=Path, metavar="DIR", help="use the first --images JPEGs in it instead")
    parser.add_argument("--sides", type=int, nargs="+", default=[504, 1008], help="of the decoded images")
    parser.add_argument("--threads", type=int, default=2, help="that decode; of other loaders, processes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keeps what was prepared for the next time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        material = prepared(folder, options.images, options.photographs)
        loaders = others(material.paths, Path(temporary), options.threads)
        found = {side: measured(material, loaders, side, options) for side in options.sides}
    print(json.dumps({**found[options.sides[0]], "sides": found, "threads": options.threads}))


def measured(
    material: Material, loaders: dict[str, Callable[[int], Iterator] | None], side: int, options: argparse.Namespace
) -> dict[str, float | None]:
    """The ratios at one side; prints its table."""
    data = DataConfig(images_per_batch=other_loaders.BATCH, prompts_per_image=4, decode_threads=options.threads)
    arms: dict[str, Callable[[], float]] = {
        "limit": lambda: decoding(material.rows, side, options.threads),
        "ours": lambda: batches_rate(ours(material, None, data, side), options.images),
        "ours + answers": lambda: batches_rate(ours(material, material.store, data, side), options.images),
        **{
            name: lambda make=make: batches_rate(make(side), options.images)  # type: ignore[misc]
            for name, make in loaders.items()
            if make is not None
        },
    }
    rates: dict[str, list[float]] = {name: [] for name in arms}
    cpu: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(options.rounds):
        for name, arm in arms.items():
            rate, milliseconds = arm()
            rates[name].append(rate)
            cpu[name].append(milliseconds)
    print(f"\n{side} x {side}{'':8} {'images/s':>9} {'of the limit':>13} {'CPU ms/image':>13}")
    for name, each in rates.items():
        own = "" if name in loaders else f"{statistics.median(cpu[name]):13.2f}"
        print(f"{name:19} {statistics.median(each):>9.0f} {ratio(each, rates['limit']):>13.2f} {own:>13}", flush=True)
    with_answers = rates["ours + answers"]
    return {
        "ratio_to_decode_limit": ratio(with_answers, rates["limit"]),
        "ratio_to_decode_limit_without_answers": ratio(rates["ours"], rates["limit"]),
        **{f"ratio_to_{name}": ratio(with_answers, rates[name]) if name in rates else None for name in loaders},
        "images_per_second": statistics.median(with_answers),
    }


def ratio(rates: Sequence[float], others: Sequence[float]) -> float:
    return round(statistics.median(one / other for one, other in zip(rates, others, strict=True)), 3)


# --- what takes turns


def decoding(rows: Sequence[Row], side: int, threads: int) -> tuple[float, float]:
    """Images a second, and CPU milliseconds an image, of threads that do nothing else."""
    todo = iter(rows)

    def work() -> None:
        for row in todo:
            decode_image(row.image, (row.height, row.width), side, 50_000_000)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    start, cpu = time.perf_counter(), time.process_time()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return len(rows) / (time.perf_counter() - start), 1000 * (time.process_time() - cpu) / len(rows)


def ours(material: Material, store: AnswerStore | None, data: DataConfig, side: int) -> Iterator:
    epochs = ((epoch, material.shards.row_groups * 50) for epoch in count())  # no end within what is measured
    return follow(epochs, data, side, seed=0, answers=store)


def batches_rate(batches: Iterator, images: int) -> tuple[float, float]:
    """Images a second, and CPU milliseconds of this process an image, once the batches come steadily."""
    for _ in range(WARM):
        next(batches)
    wanted = images // other_loaders.BATCH - 2 * WARM
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(wanted):
        next(batches)
    seen = wanted * other_loaders.BATCH
    rates = seen / (time.perf_counter() - start), 1000 * (time.process_time() - cpu) / seen
    if hasattr(batches, "close"):
        batches.close()
    return rates


# --- what they read


def others(paths: Sequence[Path], folder: Path, workers: int) -> dict[str, Callable[[int], Iterator] | None]:
    """By name, what makes an epoch at some side; None for what is not installed."""
    loaders: dict[str, Callable[[int], Iterator] | None] = {
        "dataloader": lambda side: other_loaders.dataloader(paths, side, workers),
        "webdataset": None,
        "litdata": None,
    }
    if other_loaders.installed("webdataset"):
        tars = other_loaders.webdataset_shards(paths, folder, workers)
        loaders["webdataset"] = lambda side: other_loaders.webdataset_batches(tars, side, workers)
    if other_loaders.installed("litdata"):
        chunks = other_loaders.litdata_chunks(paths, folder / "litdata")
        loaders["litdata"] = lambda side: other_loaders.litdata_batches(chunks, side, workers)
    for name, make in loaders.items():
        if make is None:
            print(f"{name}: not installed")
    return loaders


def prepared(folder: Path, images: int, photographs: Path | None) -> Material:
    """The images as files, shards and with answers; made once where the folder is kept."""
    source, out = folder / f"source-{images}", folder / f"shards-{images}"
    if not (out / "manifest.json").exists():
        source.mkdir(parents=True, exist_ok=True)
        annotations = write_images(source, images, photographs)
        prepare(annotations, source, out, PrepareSettings(max_negatives_per_image=NEGATIVES))
    shards = open_shards(out)
    rows = [row for group in shards.row_groups for row in read_rows(group)]
    store = AnswerStore(out / "answers", Identity("made", "fp32", 1008, shards.content_hash, ()), ())
    if not store.folder.exists():
        write_answers(shards, store.folder)
    size = sum(path.stat().st_size for path in store.folder.glob("*.parquet"))
    phrases = sum(len(row.prompts) for row in rows)
    print(
        f"{len(rows)} images of {sum(len(row.image) for row in rows) / len(rows) / 1000:.0f} kB, "
        f"{phrases / len(rows):.1f} phrases an image; stored answers: {size / phrases / 1000:.1f} kB a pair, "
        f"{size / len(rows) / 1000:.0f} kB an image"
    )
    return Material(sorted(source.glob("*.jpg")), shards, rows, store)


def write_images(folder: Path, images: int, photographs: Path | None) -> Path:
    """A COCO file, and beside it the images that it annotates with the masks of generated scenes."""
    found = (
        sorted(path for path in photographs.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        if photographs
        else []
    )
    if photographs and len(found) < images:
        raise SystemExit(f"--photographs {photographs}: holds {len(found)} JPEGs; give --images of that or fewer.")
    coco: dict[str, list] = {"images": [], "annotations": [], "categories": []}
    coco["categories"] = [{"id": number, "name": name} for number, name in enumerate(NAMES)]
    for number in range(images):
        path = folder / f"{number:06d}.jpg"
        random = np.random.default_rng((images, number))
        if photographs:
            scene = make_scene((images, number), 160)
            path.write_bytes(found[number].read_bytes())
            with Image.open(path) as picture:
                size = picture.size
            masks = [np.asarray(Image.fromarray(mask).resize(size)) for mask in scene.masks]
        else:
            scene = make_scene((images, number), 640)
            Image.fromarray(scene.image[80:560]).save(path, quality=95)
            masks = [mask[80:560] for mask in scene.masks]
        height, width = masks[0].shape
        coco["images"].append({"id": number, "file_name": path.name, "height": height, "width": width})
        runs = [encode_mask(mask).counts.tolist() for mask in masks if mask.any()]
        for category in random.choice(len(NAMES), POSITIVES, replace=False):
            for mask in random.choice(len(runs), random.integers(1, len(runs) + 1), replace=False):
                segmentation = {"size": [height, width], "counts": runs[mask]}
                annotation = {"id": len(coco["annotations"]), "image_id": number, "category_id": int(category)}
                coco["annotations"].append({**annotation, "segmentation": segmentation})
    path = folder / "coco.json"
    path.write_text(json.dumps(coco), encoding="utf-8")
    return path


def write_answers(shards: Shards, folder: Path) -> None:
    """The answers to all rows, in the files of a store."""
    folder.mkdir()
    groups = list(shards.row_groups)
    starts = [0, *(end for end, (one, other) in enumerate(pairwise(groups), 1) if one.path != other.path), len(groups)]
    for start, end in pairwise(starts):
        writer = AnswerWriter(answers_path(folder, Path(groups[start].path).name))
        for group in groups[start:end]:
            writer.write([answered(row) for row in read_rows(group)])
        writer.close({})


def answered(row: Row) -> RowAnswers:
    coded = encode_answers(made_answers.made_answers(row, seed=row.image_id))
    return RowAnswers(row.image_id, None, {}, tuple({"answer": data} for data in coded))


if __name__ == "__main__":
    main()
