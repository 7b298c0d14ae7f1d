"""How well the embedded teacher knows scenes it never saw, by kind of phrase.

    python benchmarks/embedded_teacher.py [DIR] [--scenes 48] [--write]

Prints a row for all kinds together, as training mixes them, and one for each. --write keeps the first as figures.json
beside the weights; a test holds the teacher to it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from math import isnan
from pathlib import Path

import sam3dist
from sam3dist.data.samples.live import scene_batch
from sam3dist.data.samples.phrases import FORMS
from sam3dist.evaluate import evaluate
from sam3dist.models.checkpoint import load_segmenter
from sam3dist.models.segmenter import Segmenter

EMBEDDED = Path(sam3dist.__file__).parent / "data" / "samples" / "teacher"
SEED = 9
"""First word of the seeds of these scenes; no other use of scenes has it."""
TOGETHER = 8


def figures(teacher: Segmenter, scenes: int, forms: Mapping[tuple[str, ...], float]) -> dict[str, float]:
    """The metrics at threshold 0.5 over phrases of these forms about `scenes` scenes."""
    starts = range(0, scenes, TOGETHER)
    batches = (scene_batch([(SEED, start + place) for place in range(TOGETHER)], None, forms) for start in starts)
    return evaluate(teacher, batches, 0.5, device="cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, default=EMBEDDED)
    parser.add_argument("--scenes", type=int, default=48)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    teacher = load_segmenter(options.directory)
    print(f"{'phrases of':24} {'pairs':>6} {'mIoU+':>6} {'mIoU':>6} {'presence F1':>11} {'cgF1':>6}")
    kinds = {"all kinds": FORMS, **{" ".join(form): {form: 1.0} for form in FORMS}}
    for kind, forms in kinds.items():
        found = figures(teacher, options.scenes, forms)
        print(
            f"{kind:24} {found['num_pairs']:>6.0f} {found['miou_positive']:>6.3f} {found['miou_all']:>6.3f} "
            f"{found['presence_f1']:>11.3f} {found['cgf1']:>6.3f}",
            flush=True,
        )
        if options.write and forms is FORMS:
            kept = {name: None if isnan(value) else round(value, 4) for name, value in found.items()}
            (options.directory / "figures.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
