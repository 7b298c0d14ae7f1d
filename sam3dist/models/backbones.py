"""timm networks as the vision side of a student: which can be, and where their weights come from."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from sam3dist.errors import CheckpointError, ConfigError
from sam3dist.models.modeling_sam3_student import STRIDES

SHOWN = "repvit_m1_1, tiny_vit_11m_224, efficientvit_b1, mobilenetv4_conv_medium, fastvit_sa12"


@dataclass(frozen=True)
class Pixels:
    """Mean and deviation of the pixels, in 0..1, with which a backbone was trained."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@cache
def backbone_pixels(name: str, side: int) -> Pixels:
    """What the backbone wants to see, once it has shown on the meta device that it takes images of this side.

    ConfigError where timm has no such network, where its maps are not at strides 4, 8, 16 and 32, or where it is made
    for one resolution alone. A third of a second the first time.
    """
    import timm

    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), 1)
        guess = f"did you mean {near[0]}?" if near else f"it has {SHOWN} and many more."
        raise ConfigError(f"student.backbone={name}: timm has no such network; {guess}")
    try:
        with torch.device("meta"):
            net: Any = timm.create_model(name, features_only=True).eval()
        strides = list(net.feature_info.reduction())
    except Exception as error:  # each of timm's families fails in its own way
        raise ConfigError(f"student.backbone={name} gives no feature maps ({_line(error)}); use {SHOWN}.") from error
    if not set(STRIDES) <= set(strides):
        found = ", ".join(map(str, strides))
        raise ConfigError(f"student.backbone={name} has maps at strides {found}, but 4, 8, 16 and 32 are needed.")
    try:
        shapes = [tuple(level.shape[-2:]) for level in net(torch.empty(1, 3, side, side, device="meta"))]
        expected = [(side // stride,) * 2 for stride in strides]
        problem = "" if shapes == expected else f"maps of {shapes[-1][0]} cells a side instead of {expected[-1][0]}"
    except Exception as error:
        problem = _line(error)
    if problem:
        raise ConfigError(f"student.backbone={name} does not take student.image_size={side} ({problem}).")
    known: Any = net.pretrained_cfg
    return Pixels(tuple(known["mean"]), tuple(known["std"]))


def load_backbone(backbone: nn.Module, name: str, weights: str) -> None:
    """Fill a backbone in place: with what timm publishes ("pretrained"), or from a file of timm's of that network.

    CheckpointError where there is no such file, no network to download over, or another architecture inside.
    """
    import timm

    if weights != "pretrained" and not Path(weights).is_file():
        raise CheckpointError(
            f"student.backbone_weights={weights}: no such file; give one, or `pretrained` for what timm publishes."
        )
    try:
        # timm itself would unpickle a file, which could run code.
        given = None if weights == "pretrained" else {"state_dict": _read(Path(weights))}
        # The whole network first: timm checks its weights one by one, those of some networks of features it does not.
        whole = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=given)
        given = {"state_dict": whole.state_dict()}
        source: Any = timm.create_model(name, features_only=True, pretrained=True, pretrained_cfg_overlay=given)
        backbone.load_state_dict(source.state_dict())
    except Exception as error:  # the hub's client, torch and timm each raise their own
        raise CheckpointError(
            f"student.backbone_weights={weights}: no weights for {name} ({_line(error)}); give a file of them, or null."
        ) from error


def _read(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise CheckpointError("it holds more than tensors, and could run code") from error
    return next((content[key] for key in ("state_dict", "model") if key in content), content)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
