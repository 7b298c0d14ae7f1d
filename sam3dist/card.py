"""Model cards of the students that a search recommends, in the form of the Hugging Face hub."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sam3dist.config.plain import read_yaml
from sam3dist.errors import ConfigError
from sam3dist.tables import NAMES
from sam3dist.wording import shown

FOLDER, FILE = "recommended", "card.md"
"""Where in a run directory the card of a trial lies: recommended/TRIAL/card.md."""
HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
"""What a model of the hub is called, and a path of two names might be, too."""


def write_cards(report: Mapping[str, Any], run_dir: Path) -> list[Path]:
    """The card of each student in `report["recommended"]`, written; those of an earlier report are deleted."""
    named = [row["trial"] for row in report["recommended"] if row["trial"] is not None]
    trials = {trial["trial"]: trial for trial in report["trials"]}
    wanted = {run_dir / FOLDER / re.sub(r"[^\w.-]", "-", name) / FILE: trials[name] for name in dict.fromkeys(named)}
    for stale in set(run_dir.glob(f"{FOLDER}/*/{FILE}")) - wanted.keys():
        stale.unlink()
        if not any(stale.parent.iterdir()):
            stale.parent.rmdir()
    for path, trial in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        command = next(row["command"] for row in report["recommended"] if row["trial"] == trial["trial"])
        path.write_text(card(trial, report, run_dir, command), encoding="utf-8")
    return list(wanted)


def card(trial: Mapping[str, Any], report: Mapping[str, Any], run_dir: Path, command: str) -> str:
    """The Markdown of a trial's student: only what the report, its configuration and its checkpoint tell."""
    config = _config(run_dir / "trials" / trial["trial"] / "config.yaml")
    source = str(_at(config, "teacher", "source") or "")
    name = str(config.get("name") or f"trial-{trial['trial']}")
    data = str((report.get("data") or {}).get("val") or "generated scenes")
    parts = [
        _front_matter(trial, name, source, data),
        f"# {name}",
        _what(trial, report, source),
        _sizes(trial),
        _quality(trial, report, data, config),
        _knobs(trial),
        _use(trial),
        _limits(trial, report),
        f"Training it in full:\n\n```bash\n{command}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(trial: Mapping[str, Any], name: str, source: str, data: str) -> str:
    """What the hub reads. The licence is left out: it follows from those of the teacher and the data."""
    told = {key: value for key, value in trial["metrics"].items() if isinstance(value, float)}
    metrics = [{"type": key, "name": NAMES.get(key, key), "value": value} for key, value in told.items()]
    result = {
        "task": {"type": "image-segmentation", "name": "Segmentation by phrases"},
        "dataset": {"type": _short(data), "name": _short(data)},
        "metrics": metrics,
    }
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "mask-generation"}
    if _on_hub(source):
        head["base_model"] = source
    head["tags"] = ["sam3", "sam3dist", "distillation", "image-segmentation"]
    head["model-index"] = [{"name": name, "results": [result]}]
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---"


def _what(trial: Mapping[str, Any], report: Mapping[str, Any], source: str) -> str:
    teacher = f"[{source}](https://huggingface.co/{source})" if _on_hub(source) else f"`{_short(source)}`"
    known = {"": "a teacher that is not on record", "embedded": "the embedded teacher of sam3dist"}
    teacher = known.get(source, teacher)
    version = report["versions"]["sam3dist"]
    steps = f" after {shown(trial['step'])} steps" if trial.get("step") else ""
    return (
        f"A small student of {teacher}: an image and a short phrase in, a mask of every instance of the phrase out.\n"
        f"It has {shown(trial['params_millions'])} million parameters, and is trial {trial['trial']} of "
        f"{len(report['trials'])} of a search by sam3dist {version}{steps}."
    )


def _sizes(trial: Mapping[str, Any]) -> str:
    rows = [[kind, shown(size)] for kind, size in (trial.get("megabytes") or {}).items()]
    return f"## Size\n\n{_table(['weights in', 'MB'], rows)}\n\nCounted from the shape, not measured on files."


def _quality(trial: Mapping[str, Any], report: Mapping[str, Any], data: str, config: Mapping[str, Any]) -> str:
    metrics, before = trial["metrics"], trial.get("before") or {}
    rows = [[NAMES.get(key, key), shown(before.get(key)), shown(value)] for key, value in metrics.items()]
    most, threshold = _at(config, "eval", "max_images"), _at(config, "eval", "threshold")
    some = f" (its first {shown(most)} images)" if most else ""
    at = f", at a threshold of {shown(threshold)}" if threshold is not None else ""
    searched = NAMES.get(report["objective"]["quality"], report["objective"]["quality"])
    said = f"Measured on `{_short(data)}`{some}{at}; the search was for {searched}."
    return f"## Quality\n\n{said}\n\n{_table(['', 'before training', 'trained'], rows)}"


def _knobs(trial: Mapping[str, Any]) -> str:
    text = yaml.safe_dump(dict(trial["config"]), sort_keys=False, allow_unicode=True).rstrip()
    return f"## Settings that the search chose\n\n```yaml\n{text}\n```" if trial["config"] else ""


def _use(trial: Mapping[str, Any]) -> str:
    """How to load it, as far as its checkpoint tells which class it is of."""
    checkpoint = trial.get("checkpoint")
    if not checkpoint:
        return ""
    student = f"{checkpoint}/student"
    try:
        kind = json.loads(Path(student, "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError):
        kind = None
    loads = {
        None: "",
        "sam3": "from transformers import Sam3Model, Sam3Processor\n\n"
        f'model = Sam3Model.from_pretrained("{student}")\nprocessor = Sam3Processor.from_pretrained("{student}")\n',
    }
    other = "from transformers import AutoModel\n\n"
    other += f'model = AutoModel.from_pretrained("{student}", trust_remote_code=True)\n'
    python = loads.get(kind, other)
    shell = f'```bash\nsam3dist predict {checkpoint} photo.jpg "yellow fish"\n```'
    return "## Use\n\n" + (f"```python\n{python}```\n\n" if python else "") + shell


def _limits(trial: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    done = sum(row["state"] == "done" for row in report["trials"])
    lines = [
        f"Chosen as the best of {done} by the very data it was measured on, so these numbers flatter it a little.",
        "A trial of a search is a short run; the command below trains it in full.",
        "Quality after quantisation was not measured; the sizes in int8 and int4 say nothing of it.",
        "It knows what its training data showed it. Nothing was measured on other data.",
        "The licences of the teacher and of the data decide what it may be used for; the report does not know them.",
    ]
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _config(path: Path) -> dict[str, Any]:
    try:
        return read_yaml(path)
    except ConfigError:
        return {}


def _at(tree: Mapping[str, Any], section: str, key: str) -> Any:
    return (tree.get(section) or {}).get(key)


def _on_hub(source: str) -> bool:
    return HUB.fullmatch(source) is not None and not Path(source).exists()


def _short(path: str) -> str:
    """The last two parts of a path: what tells data from data, and nothing of the machine."""
    return "/".join(Path(path).parts[-2:]).lstrip("/")
