"""A made-up search: the report of twenty trials and what they left in their run directory, without training any."""

import json
import random
from math import exp, log
from pathlib import Path
from typing import Any

from sam3dist.objective import hypervolume

OBJECTIVE = {"quality": "miou_all", "size_weight": 0.1}
REFERENCE = 841.0
STEPS = 1500
BEGAN = 1_700_000_000.0


def trial(
    name: str, quality: float | None, params: float | None = 10.0, state: str = "done", **config: Any
) -> dict[str, Any]:
    """A row of report["trials"]; sizes are 4, 2, 1 and half a byte a parameter."""
    metrics = {} if quality is None else {"miou_all": quality, "presence_f1": 0.5}
    size = None if params is None else {kind: params * per for kind, per in BYTES.items()}
    return {
        "trial": name,
        "state": state,
        "config": config,
        "metrics": metrics,
        "params_millions": params,
        "megabytes": size,
        "checkpoint": f"runs/made-up/trials/{name}/checkpoints/last",
    }


BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0, "int4": 0.5}


def search(run_dir: Path, trials: int = 20, seed: int = 0, teacher: bool = True) -> dict[str, Any]:
    """The report of a search of some space like search_spaces/mobile.yaml, as `write_report` takes it."""
    draw = random.Random(seed)
    rows = [_row(index, draw, run_dir) for index in range(trials)]
    done = [row for row in rows if row["state"] == "done"]
    best: list[dict[str, Any]] = []
    for row in sorted(done, key=lambda row: row["params_millions"]):
        if not best or row["metrics"]["miou_all"] > best[-1]["metrics"]["miou_all"]:
            best.append(row)
    points = [(row["metrics"]["miou_all"], row["params_millions"]) for row in done]
    area = hypervolume(points, (0.0, REFERENCE), log_size=True)
    front = [{**row, "miou_all": row["metrics"]["miou_all"]} for row in best]
    report: dict[str, Any] = {
        "verb": "tune",
        "seconds": 86_000.0,
        "trials": rows,
        "front": front,
        "best": front[-1] if front else None,
        "hypervolume": area,
        "reference_millions": REFERENCE,
        "objective": OBJECTIVE,
        "data": {"train": "/data/shards/photos-train", "val": "/data/shards/photos-val"},
    }
    if teacher:
        report |= {"student": {"miou_all": 0.52}, "teacher": {"miou_all": 0.71}}
        report |= {"sizes": {"teacher": {"params_millions": REFERENCE}}}
    (run_dir / "search.yaml").write_text("preset: small\noverrides: {optim.steps: 1500}\n")
    (run_dir / "config.yaml").write_text("name: made-up\n")
    return report


def _row(index: int, draw: random.Random, run_dir: Path) -> dict[str, Any]:
    config: dict[str, Any] = {
        "distillation.temperature": draw.uniform(1, 8),
        "distillation.beta": exp(draw.uniform(log(0.1), log(10))),
        "optim.learning_rate": exp(draw.uniform(log(1e-4), log(2e-3))),
        "student.backbone": draw.choice([None, "repvit_m1_1", "efficientvit_b1", "mobilenetv4_conv_medium"]),
        "student.image_size": draw.choice([384, 512, 768]),
        "student.encoder_layers": draw.randint(2, 6),
        "data.horizontal_flip": draw.choice([True, False]),
    }
    if config["student.backbone"] is None:
        config["student.vision_width"] = draw.choice([384, 512, 768])
    name = f"{index:03d}"
    if index == 7:
        return {
            "trial": name,
            "state": "refused",
            "config": config,
            "metrics": {},
            "params_millions": None,
            "reason": "212.4 million parameters are above max_params_millions=200.",
        }
    heavy = {None: 120, "repvit_m1_1": 40, "efficientvit_b1": 18, "mobilenetv4_conv_medium": 75}
    params = heavy[config["student.backbone"]] * config.get("student.vision_width", 384) / 384
    params += 9 * config["student.encoder_layers"]
    top = 0.1 + 0.11 * log(params / 10) + 0.0002 * config["student.image_size"]
    top -= 0.03 * log(config["distillation.beta"]) ** 2
    state = "failed" if index == 11 else "stopped" if index % 5 == 3 else "done"
    last = 300 if state == "failed" else draw.choice([300, 600]) if state == "stopped" else STEPS
    lines = []
    for step in range(0, last + 1, 300):
        quality = max(0.02, top * (1 - exp(-step / 500)) + draw.gauss(0, 0.008))
        lines.append({"step": step, "kind": "eval", "miou_all": None if index == 5 and step == 600 else quality})
        lines.append({"step": step + 10, "kind": "train", "loss/total": 300.0})
    folder = run_dir / "trials" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text(
        f"name: made-up-{name}\nteacher: {{source: facebook/sam3}}\noptim: {{steps: {STEPS}}}\n"
        "eval: {max_images: 500, threshold: 0.5}\ncheckpoint: {storage_path: null}\n"
    )
    made = trial(name, lines[-2]["miou_all"], params, state, **config)
    seconds = 3000.0 + 4000 * draw.random()
    made |= {"step": last, "began": BEGAN + 2000 * index, "wall_seconds": seconds * last / STEPS}
    if state == "failed":
        made["reason"] = "distillation.beta: the loss is not finite at step 310."
    return made
