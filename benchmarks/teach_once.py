"""What asking the teacher once saves a search: the same trials with stored answers and with the teacher in every step.

    python benchmarks/teach_once.py [--trials 8] [--epochs 3] [--images 128] [--skip-sam3]

Both searches have the same scenes, seeds, shapes and loss weights, one after the other on the same machine; the time of
the teaching counts. The second part computes the same for SAM3 at 1008 pixels from the operations of its forward
pass, which one image and phrase are put through for it (a minute, 5 GB of memory). Prints tables and, last, one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Sam3Config, Sam3Model

from cluster.search import run_search
from cluster.session import session
from cluster.teach import run_teaching
from sam3dist.config.load import load_preset, load_search, with_search_overrides
from sam3dist.data.samples.write import scene_shards
from sam3dist.models.segmenter import Segmenter
from sam3dist.models.student import student_config
from sam3dist.models.text import clip_tokenizer

SPACE = Path(__file__).parents[1] / "search_spaces" / "smoke.yaml"
STUDENT = "small"
"""The preset whose search is computed for SAM3."""
PHRASES = 8
"""Of an image, in what is computed; a step asks `data.prompts_per_image` of them."""
BACKWARD = 2.0
"""Operations of a backward pass over those of the forward pass."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=128, help="training scenes")
    parser.add_argument("--skip-sam3", action="store_true", help="leave out what is computed for SAM3")
    options = parser.parse_args()
    found = measured(options.trials, options.epochs, options.images)
    print(f"\n{'':24}{'seconds':>9}")
    for name in ("teach", "search, stored", "search, online"):
        print(f"{name:24}{found['seconds'][name]:>9.1f}")
    print(f"{'speedup':24}{found['speedup']:>9.2f}   training steps alone {found['speedup_of_steps']:.2f}")
    if not options.skip_sam3:
        found["sam3"] = computed(options.trials, options.epochs)
        print(f"\nSAM3 at 1008 pixels, students like `{STUDENT}`, tera-operations of an image")
        for name, value in found["sam3"].items():
            print(f"{name:44}{value:>9.2f}")
    print(json.dumps(found))


def measured(trials: int, epochs: int, images: int) -> dict[str, Any]:
    """Seconds of the teaching and of both searches under the embedded teacher."""
    search = load_search(SPACE)
    steps = max(1, epochs * images // search.base().data.images_per_batch)
    seconds: dict[str, float] = {}
    paces: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, session(search.base().run):
        data = {
            "data.train": str(scene_shards(Path(folder), images, seed=200)),
            "data.val": str(scene_shards(Path(folder), 16, seed=201)),
            "optim.steps": steps,
            "eval.every_steps": steps,
            "checkpoint.every_steps": steps,
            "trials": trials,
            "sampler": "random",  # whose suggestions follow from the seed, not from what trials reached
            "startup_trials": None,
            "seeds": [],
        }
        search = with_search_overrides(search, data)
        started = time.perf_counter()
        run_teaching(search.base())
        seconds["teach"] = time.perf_counter() - started
        for mode in ("stored", "online"):
            started = time.perf_counter()
            result = run_search(with_search_overrides(search, {"teacher.mode": mode}), Path(folder) / mode)
            seconds[f"search, {mode}"] = time.perf_counter() - started
            assert all(trial["state"] == "done" for trial in result["trials"])
            paces[mode] = sum(1 / trial["samples_per_second"] for trial in result["trials"])
    return {
        "speedup": seconds["search, online"] / (seconds["teach"] + seconds["search, stored"]),
        "speedup_of_steps": paces["online"] / paces["stored"],
        "seconds": seconds,
        "trials": trials,
        "epochs": epochs,
        "images": images,
    }


def computed(trials: int, epochs: int) -> dict[str, float]:
    """Tera-operations of an image in the same search under SAM3, with and without a store."""
    config = load_preset(STUDENT)
    asked = config.data.prompts_per_image
    sam3 = Sam3Config()
    teacher = _per_image_and_prompt(sam3)
    student = _per_image_and_prompt(student_config(config.student, sam3))
    step = (1 + BACKWARD) * (student[0] + asked * student[1])
    online = trials * epochs * (teacher[0] + asked * teacher[1] + step)
    taught = teacher[0] + PHRASES * teacher[1]
    stored = taught + trials * epochs * step
    return {
        "teacher, vision": teacher[0],
        "teacher, a phrase": teacher[1],
        f"teaching, {PHRASES} phrases, once": taught,
        f"student, a step with {asked} phrases": step,
        f"search of {trials} trials x {epochs} epochs, online": online,
        f"search of {trials} trials x {epochs} epochs, stored": stored,
        "ratio": online / stored,
    }


def _per_image_and_prompt(config: Sam3Config) -> tuple[float, float]:
    """Tera-operations of the forward pass for an image, and for each phrase asked of it; a multiplication counts one
    operation and so does an addition."""
    with torch.device("meta"):
        net = Sam3Model(config)
    net.to_empty(device="cpu").eval()
    for tensor in (*net.parameters(), *net.buffers()):
        tensor.data.zero_()  # any values will do that are numbers
    segmenter = Segmenter(net, clip_tokenizer())
    image = torch.zeros(1, 3, config.image_size, config.image_size, dtype=torch.uint8)
    totals = []
    for prompts in (1, 2):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            owner = torch.zeros(prompts, dtype=torch.int64)
            segmenter(image, owner, tuple(f"thing {number}" for number in range(prompts)))
        totals.append(counter.get_total_flops() / 1e12)
    one, two = totals
    return 2 * one - two, two - one


if __name__ == "__main__":
    main()
