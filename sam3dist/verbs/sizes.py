"""`sam3dist sizes`: what students are made of, how large they are and how much they compute."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam3dist.errors import ConfigError
from sam3dist.verbs.grammar import Overrides, Verb, run_dir, settings

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillConfig

TAKES = ("student", "run.dir")
FIFTY = 50.0
"""Megabytes that a student for phones may have."""
VIT_768 = {"vision_width": 768, "vision_depth": 24, "vision_heads": 12, "encoder_layers": 4, "decoder_layers": 4}
VIT_896 = {"vision_width": 896, "vision_depth": 28, "vision_heads": 14}
VIT_512 = {"vision_width": 512, "vision_depth": 16, "vision_heads": 8, "encoder_layers": 4, "decoder_layers": 4}
KNOWN: dict[str, dict[str, Any]] = {
    "896/28/14, SAM3's text": VIT_896,
    "896/28/14, S0's text": {**VIT_896, "text_tower": "repmixer"},
    "768/24/12, SAM3's text": VIT_768,
    "768/24/12, S0's text": {**VIT_768, "text_tower": "repmixer"},
    "512/16/8, SAM3's text": VIT_512,
    "512/16/8, S0's text": {**VIT_512, "text_tower": "repmixer"},
    "like EfficientSAM3": {"backbone": "efficientvit_b1", "neck": "sam3", "text_tower": "repmixer"},
}
"""Students of SAM3 beside the presets: what a text tower weighs in three vision towers, and one of the literature."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shapes", metavar="PRESET|SPACE", nargs="*", help="a preset, or the file of one or of a search")


def run(options: argparse.Namespace, overrides: Overrides) -> Path:
    from sam3dist.models.compositions import composition, student_shape
    from sam3dist.report import write_report
    from sam3dist.verbs.console import progress, table

    started = time.perf_counter()
    config = settings("sizes", overrides, TAKES)
    own = {key: value for key, value in overrides.items() if key != "run.dir"}
    runs = list(asked(options.shapes, own))
    found = []
    with progress("students counted") as told:
        for name, one in runs:
            found.append(composition(name, student_shape(one)))
            told(len(found), len(runs))

    directory = run_dir(config, "sizes", *options.shapes)
    rows = [
        asdict(one) | {"under_50_mb": {kind: one.size.megabytes[kind] < FIFTY for kind in ("int8", "int4")}}
        for one in found
    ]
    write_report(
        directory,
        {"verb": "sizes", "seconds": time.perf_counter() - started, "overrides": own, "compositions": rows},
    )
    table(
        ("student", "vision", "text", "pixels", "vision M", "text M", "head M", "total M"),
        [
            (one.name, one.vision, one.text, one.image_size, *one.size.parts.values(), one.size.params_millions)
            for one in found
        ],
    )
    table(
        ("student", "fp32 MB", "fp16 MB", "int8 MB", "int4 MB", "under 50 MB", "vision GFLOPs", "text", "head"),
        [
            (row["name"], *one.size.megabytes.values(), small(row["under_50_mb"]), *one.gigaflops.values())
            for row, one in zip(rows, found, strict=True)
        ],
    )
    return directory


def small(fits: dict[str, bool]) -> str:
    """ "int8, int4": the precisions that fit."""
    return ", ".join(kind for kind, fit in fits.items() if fit) or "no"


def asked(shapes: list[str], overrides: Overrides) -> Iterator[tuple[str, DistillConfig]]:
    """The name and the run of every student to count.

    Of nothing, all that is known; of settings alone, SAM3 so changed; of a search, its seeds and both its ends.
    """
    from sam3dist.config.load import load_preset, presets, with_overrides

    if not shapes and overrides:
        yield (
            " ".join(f"{key.removeprefix('student.')}={value}" for key, value in overrides.items()),
            with_overrides(load_preset("base"), overrides),
        )
    elif not shapes:
        yield from ((name, load_preset(name)) for name in presets())
        for name, spec in KNOWN.items():
            yield name, with_overrides(load_preset("base"), {f"student.{key}": value for key, value in spec.items()})
    for shape in shapes:
        if _is_search(shape):
            yield from ends_of_search(shape, overrides)
        else:
            yield shape, with_overrides(load_preset(shape), overrides)


def _is_search(path: str) -> bool:
    from sam3dist.config.plain import read_yaml

    return Path(path).is_file() and "space" in read_yaml(Path(path))


def ends_of_search(path: str, overrides: Overrides) -> Iterator[tuple[str, DistillConfig]]:
    """Of a search space its seeds, and the smallest and largest student: of each key what makes it so by itself."""
    from sam3dist.config.load import load_search, with_overrides, with_search_overrides
    from sam3dist.config.space import Remainder, draw, ends
    from sam3dist.models.compositions import student_shape
    from sam3dist.models.size import model_size

    search = with_search_overrides(load_search(path), overrides)
    base = search.base()
    shapes = {
        key: ends(span)
        for key, span in search.space.items()
        if key.startswith("student.") and not isinstance(span, Remainder)
    }
    for number, seed in enumerate(search.seeds):
        yield f"{search.name}, seed {number}", with_overrides(base, {key: seed[key] for key in shapes if key in seed})
    smallest, largest = {}, {}
    for key, values in shapes.items():
        sizes = {}
        for value in values:
            try:
                millions = model_size(student_shape(with_overrides(base, {key: value}))).params_millions
            except ConfigError:  # the search, too, refuses it, and goes on
                continue
            # Of equally many parameters the larger number computes more: pixels, queries.
            sizes[value] = (millions, value if isinstance(value, int | float) else 0)
        if sizes:
            smallest[key], largest[key] = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    for name, extreme in (("smallest", smallest), ("largest", largest)):
        met = draw(search.space, partial(_of_key, extreme))  # without the keys whose condition fails
        yield f"{search.name}, {name}", with_overrides(base, {key: met[key] for key in extreme if key in met})


def _of_key(values: Mapping[str, Any], key: str, _: object) -> Any:
    return values.get(key)


VERB = Verb(
    name="sizes",
    summary="show what students are made of, their sizes and their operations, before anything is built",
    details="Without arguments: every preset, three vision transformers with SAM3's text tower and with a small one,\n"
    "and one like EfficientSAM3. Of a search space: its seeds, its smallest and its largest student. With settings\n"
    "alone: SAM3 so changed. Needs no weights. GFLOPs are those of one image (vision) and of one phrase (text, head);\n"
    "int4 keeps kernels at 8 bits. Keys: student, run.dir.",
    examples=(
        "sam3dist sizes",
        "sam3dist sizes small repvit student.text_tower=lite",
        "sam3dist sizes search_spaces/full.yaml",
        "sam3dist sizes student.backbone=tiny_vit_5m_224 student.text_tower=MobileCLIP2-S0",
    ),
    arguments=arguments,
    run=run,
)
