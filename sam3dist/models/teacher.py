"""The frozen network that students imitate, from wherever it is kept."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import Sam3Config

from sam3dist.errors import CheckpointError, ConfigError, first_line
from sam3dist.models.checkpoint import (
    assemble,
    network_root,
    read_config,
    read_segmenter,
)
from sam3dist.models.geometry import uses_geometry_token
from sam3dist.models.hub import gated
from sam3dist.models.meta_weights import read_meta_checkpoint
from sam3dist.models.segmenter import Segmenter
from sam3dist.models.source import files_sha256, resolve
from sam3dist.models.text import clip_tokenizer

EMBEDDED = Path(__file__).parents[1] / "data" / "samples" / "teacher"
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
FILES = ["*.json", "*.safetensors", "merges.txt"]
"""What a network is kept in, in the format of transformers."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def load_teacher(
    source: str | Path,
    device: str | torch.device = "cpu",
    precision: str = "auto",
    geometry_token: bool | None = None,
) -> Segmenter:
    """The teacher, frozen and in eval mode, on `device`.

    source: "embedded" (ships with the package), a directory (a teacher's, a student's or a training
    checkpoint), Meta's `sam3.pt`, or a Hugging Face id, which is downloaded once. Every weight must fit; else
    CheckpointError.
    precision: "auto" takes bf16 where the device computes it fast, else fp32. In bf16 and fp16 the two towers
    are stored so, too; the small heads stay fp32, because boxes need more digits than bf16 has.
    geometry_token: whether it is asked as SAM3 was trained (geometry.py); None: where its geometry encoder is trained.
    """
    if precision not in ("auto", "fp32", *DTYPES):
        raise ConfigError(f"teacher.precision={precision} is unknown; use auto, fp32, bf16 or fp16.")
    teacher = _read(source)
    teacher.geometry_token = uses_geometry_token(teacher.net.config, geometry_token)
    return in_precision(teacher.to(device).requires_grad_(False).eval(), precision)


def teacher_config(source: str | Path) -> Sam3Config:
    """The configuration of `load_teacher`'s network, without reading its weights; of Meta's file, SAM3's own."""
    path = located_network(source, ["config.json"])
    return Sam3Config() if path.is_file() else read_config(str(path))


def model_type(source: str | Path) -> str:
    """What transformers calls the kind of network at a source: "sam3", "sam3_video", "sam", ..."""
    path = located_network(source, ["config.json"])
    if path.is_file():
        return "sam3"
    try:
        return str(json.loads((path / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"{path / 'config.json'}: names no model_type; expected the files of a network."
        ) from None


def fingerprint(source: str | Path) -> str:
    """SHA-256 of the files that make up `load_teacher`'s network: the same wherever they lie."""
    return files_sha256(network_files(source))


def network_files(source: str | Path) -> list[Path]:
    """The files that make up the network at a source, downloaded where it is a Hugging Face id."""
    root = located_network(source)
    if root.is_file():
        return [root]
    # The report of `weights` lies beside the network but says when it was made.
    return sorted(file for pattern in FILES for file in root.glob(pattern) if file.name != "report.json")


def in_precision(teacher: Segmenter, precision: str) -> Segmenter:
    """The same float32 teacher, changed in place to answer in this precision; see `load_teacher`.

    A student that inherits its weights must be built before: bf16 keeps three digits of them.
    """
    if precision == "auto":
        precision = "bf16" if computes_bf16_fast(teacher.device) else "fp32"
    if precision in DTYPES:
        teacher.autocast = DTYPES[precision]
        # Parameters only: rotary frequencies are buffers, and rounding those would bend positions.
        for tower in (teacher.net.vision_encoder, teacher.net.text_encoder):
            for part in tower.modules():
                if isinstance(part, _BatchNorm):  # goes with its statistics, which are buffers
                    continue
                for parameter in part.parameters(recurse=False):
                    parameter.data = parameter.data.to(DTYPES[precision])
    return teacher


def computes_bf16_fast(device: torch.device) -> bool:
    """Whether bf16 has its own units here: NVIDIA from Ampere on; CPUs vary too much to count on it."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def located_network(source: str | Path, files: list[str] = FILES) -> Path:
    """The directory of a network, or Meta's file; these files of a Hugging Face id are downloaded once."""
    path, local = located(source)
    if local and path.is_file():
        return path
    return network_root(path if local else _download(str(source), files))


def _read(source: str | Path) -> Segmenter:
    path = located_network(source)
    if path.is_file():
        return assemble(read_meta_checkpoint(path), clip_tokenizer(), path)
    return read_segmenter(str(path))


def located(source: str | Path) -> tuple[Path, bool]:
    """The directory or Meta's file, and True; or False for a Hugging Face id. CheckpointError for anything else."""
    path = EMBEDDED if source == "embedded" else Path(resolve(str(source))).expanduser()
    if source == "embedded" or path.is_dir():
        return path, True
    if path.is_file():
        if path.suffix not in (".pt", ".pth"):
            raise CheckpointError(f"{path} is a file but not Meta's sam3.pt; give the directory that holds it.")
        return path, True
    if not isinstance(source, str) or not HUB_ID.fullmatch(source):
        raise CheckpointError(
            f"{source} does not exist; give a directory, Meta's sam3.pt, or an id like facebook/sam3."
        )
    return path, False


def _download(hub_id: str, patterns: list[str]) -> str:
    """The local directory of a Hugging Face model, downloaded with progress unless it is there already."""
    try:
        return snapshot_download(hub_id, allow_patterns=patterns)
    except GatedRepoError as error:
        raise CheckpointError(gated(hub_id)) from error
    except Exception as error:  # the client raises errors of several libraries
        raise CheckpointError(
            f"{hub_id}: there is no such directory, and as a Hugging Face id it could not be downloaded "
            f"({first_line(error)}); check the path, or copy the model to this machine and give its directory."
        ) from error
