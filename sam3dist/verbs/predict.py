"""`sam3dist predict`: what a model sees in one image."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from sam3dist.errors import ConfigError
from sam3dist.verbs.grammar import Overrides, Verb, run_dir, settings, slug

TAKES = ("eval.threshold", "data.max_pixels", "teacher.precision", "teacher.geometry_token", "run.dir")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a run or checkpoint directory, embedded, or a hub id")
    parser.add_argument("image", metavar="IMAGE", help="a JPEG, PNG, WebP, TIFF, BMP or GIF")
    parser.add_argument("phrases", metavar="PHRASE", nargs="+", help='what to look for, as in "yellow fish"')


def run(options: argparse.Namespace, overrides: Overrides) -> Path:
    from sam3dist.config.load import to_yaml
    from sam3dist.models.source import resolve
    from sam3dist.predict import coco_document, draw, predict, read_picture
    from sam3dist.report import write_report
    from sam3dist.verbs.checkpoints import load
    from sam3dist.verbs.console import table

    started = time.perf_counter()
    config = settings("predict", overrides, TAKES)
    phrases = [phrase.strip() for phrase in options.phrases]
    if not all(phrases):
        raise ConfigError('predict: a PHRASE is empty; give what to look for, as in "yellow fish".')
    image = read_picture(options.image, config.data.max_pixels)
    model = load(options.checkpoint, config.teacher.precision, config.teacher.geometry_token)
    found = predict(model, image, phrases, config.eval.threshold)

    directory = run_dir(config, "predict", options.checkpoint, str(Path(options.image).with_suffix("")))
    figures = directory / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    stem = slug(Path(options.image).stem)
    picture, annotations = figures / f"{stem}.png", directory / f"{stem}.json"
    draw(image, phrases, found).save(picture)
    document = coco_document(Path(options.image).name, (image.height, image.width), phrases, found)
    annotations.write_text(json.dumps(document, indent=1) + "\n")
    (directory / "config.yaml").write_text(to_yaml(config))
    write_report(
        directory,
        {
            "verb": "predict",
            "seconds": time.perf_counter() - started,
            "checkpoint": resolve(options.checkpoint),
            "image": str(options.image),
            "image_size": [image.height, image.width],
            "threshold": config.eval.threshold,
            "found": [
                {
                    "phrase": phrase,
                    "instances": len(instances),
                    "scores": [instance.score for instance in instances],
                    "pixels": [int(instance.mask.sum()) for instance in instances],
                }
                for phrase, instances in zip(phrases, found, strict=True)
            ],
            "annotations": annotations.name,
            "figures": [f"figures/{picture.name}"],
        },
    )
    rows = [
        (phrase, len(instances), max((instance.score for instance in instances), default=None))
        for phrase, instances in zip(phrases, found, strict=True)
    ]
    table(("phrase", "instances", "best score"), rows)
    print(f"picture      {picture}\nannotations  {annotations}")
    return directory


VERB = Verb(
    name="predict",
    summary="find what phrases name in an image: a picture of it and COCO RLE JSON",
    details="The picture shows every instance in a colour of its own with its phrase and score; the JSON is a COCO\n"
    f"document with `phrase` and `score` for each annotation.\nKeys: {', '.join(TAKES)}.",
    examples=(
        'sam3dist predict runs/train-small reef.jpg "yellow fish"',
        'sam3dist predict embedded street.png "red car" "person on a bicycle" eval.threshold=0.3',
    ),
    arguments=arguments,
    run=run,
)
