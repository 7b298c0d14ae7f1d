"""A network wherever and however it is kept: on the hub, in a run of ours, as safetensors, as a pickle, by Meta."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from transformers import Sam3Config

from sam3dist.errors import CheckpointError
from sam3dist.models.checkpoint import assemble, built, network_root, read_config, read_segmenter
from sam3dist.models.hub import Repository, Update, fetch, open_repository
from sam3dist.models.meta_weights import is_left_out, read_meta_checkpoint
from sam3dist.models.pickles import read_pickle
from sam3dist.models.segmenter import Segmenter
from sam3dist.models.teacher import located
from sam3dist.models.text import clip_tokenizer, load_tokenizer

if TYPE_CHECKING:
    from sam3dist.models.settings import WeightsSettings

PREFIX = "detector_model."
"""Of the detector's weights in transformers' Sam3VideoModel, which is how Meta publishes SAM3."""
SAFETENSORS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
PICKLES = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")
OF_THE_TRACKER = ("tracker_model.", "tracker_neck.")


@dataclass(frozen=True)
class Found:
    """A float32 network, where it was, and what of that is no part of it."""

    segmenter: Segmenter
    source: dict[str, str]
    """`kind` of layout: transformers, pickle or meta; `place`; of the hub `repository` and `commit`."""
    left_out: list[dict[str, Any]]
    """By `name`: of weights how many `tensors` with how many `parameters`, of files how many `bytes`."""


def find(source: str, settings: WeightsSettings, downloads: Path, update: Update) -> Found:
    """The network at a Hugging Face id, a directory, a run or checkpoint of ours, or in Meta's sam3.pt.

    Safetensors are preferred; pickles are read without the power to run code, so one that asks for it is refused.
    What is fetched from the hub stays in `downloads`. CheckpointError for anything that cannot be a SAM3.
    """
    path, local = located(source)
    if not local:
        repository = open_repository(source, settings.revision)
        return _published(repository, downloads / repository.commit, update)
    if path.is_file():
        return _read("meta", path.parent, [path.name], {"kind": "meta", "place": str(path)}, [])
    root = path if _weights_in(_names(path)) else network_root(path)
    kind, files = layout(_names(root), str(root))
    used = files if root == path else [root.name]  # a checkpoint of ours has the student in `student/`
    beside = [{"name": item.name, "bytes": _bytes(item)} for item in sorted(path.iterdir()) if item.name not in used]
    return _read(kind, root, files, {"kind": kind, "place": str(root)}, beside)


def layout(names: Collection[str], source: str) -> tuple[str, list[str]]:
    """How the network among these files is kept, and which of them it is: (transformers, pickle or meta, files)."""
    texts = [name for name in names if name == "merges.txt" or (name.endswith(".json") and name != "report.json")]
    for kind, weights in _weights_in(names).items():
        if kind == "meta" or "config.json" in names:
            # The index of weights in another format is none of these.
            return kind, sorted([*weights, *(text for text in texts if kind != "pickle" or ".index." not in text)])
    raise CheckpointError(
        f"{source} holds no network; expected config.json with model.safetensors or pytorch_model.bin, or Meta's "
        "sam3.pt."
    )


def _weights_in(names: Collection[str]) -> dict[str, list[str]]:
    """The files of weights by the kind of their layout, the preferred one first."""
    pickles = sorted(name for name in names if name.endswith((".pt", ".pth")))
    found = {
        "transformers": [name for name in names if SAFETENSORS.fullmatch(name)],
        "pickle": [name for name in names if PICKLES.fullmatch(name)],
        "meta": ["sam3.pt"] if "sam3.pt" in pickles else pickles[: len(pickles) == 1],
    }
    return {kind: weights for kind, weights in found.items() if weights}


def _published(repository: Repository, downloads: Path, update: Update) -> Found:
    kind, names = layout([file.name for file in repository.files if "/" not in file.name], repository.id)
    paths = {
        file.name: fetch(repository, file, downloads, update) for file in repository.files if file.name in set(names)
    }
    # Some may be in the hub's cache and some not: they are read from one directory.
    for name, path in paths.items():
        if path.parent != downloads:
            downloads.mkdir(parents=True, exist_ok=True)
            (downloads / name).symlink_to(path.resolve())
    others = [{"name": file.name, "bytes": file.bytes} for file in repository.files if file.name not in paths]
    source = {"kind": kind, "place": repository.id, "repository": repository.id, "commit": repository.commit}
    return _read(kind, downloads, names, source, others)


def _read(kind: str, root: Path, files: list[str], source: dict[str, str], others: list[dict[str, Any]]) -> Found:
    if kind == "transformers":
        segmenter = read_segmenter(str(root))
        held = {name: shape for file in files if file.endswith(".safetensors") for name, shape in _shapes(root / file)}
        known = segmenter.net.state_dict().keys()
        rest = {name: shape for name, shape in held.items() if name.removeprefix(PREFIX) not in known}
        return Found(segmenter, source, [*_grouped(rest), *others])
    config = read_config(str(root)) if "config.json" in files else Sam3Config()
    if kind == "meta":
        (pickle,) = (root / name for name in files if name.endswith((".pt", ".pth")))
        net = read_meta_checkpoint(pickle, config)
        state = read_pickle(pickle)
        rest = {name: tuple(value.shape) for name, value in state.items() if is_left_out(name)}
    else:
        state = {}
        for file in files:
            state |= read_pickle(root / file) if PICKLES.fullmatch(file) else {}
        rest = {name: tuple(value.shape) for name, value in state.items() if name.startswith(OF_THE_TRACKER)}
        own = {name.removeprefix(PREFIX): value for name, value in state.items() if name not in rest}
        net = built(root, own, config)
    tokenizer = load_tokenizer(root) if "tokenizer.json" in files else clip_tokenizer()
    return Found(assemble(net, tokenizer, root), source, [*_grouped(rest), *others])


def _shapes(file: Path) -> Iterable[tuple[str, tuple[int, ...]]]:
    with safe_open(file, "pt") as content:
        for name in content.keys():  # noqa: SIM118  it is no mapping
            yield name, tuple(content.get_slice(name).get_shape())


def _grouped(shapes: Mapping[str, tuple[int, ...]]) -> list[dict[str, Any]]:
    """Tensors and parameters by the first part of the names."""
    tensors, parameters = Counter[str](), Counter[str]()
    for name, shape in shapes.items():
        start = name.partition(".")[0]
        tensors[start] += 1
        parameters[start] += torch.Size(shape).numel()
    return [{"name": name, "tensors": count, "parameters": parameters[name]} for name, count in sorted(tensors.items())]


def _names(directory: Path) -> list[str]:
    return [item.name for item in directory.iterdir() if item.is_file()]


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())
