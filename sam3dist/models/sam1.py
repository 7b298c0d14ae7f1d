"""SAM (1) as a teacher: it cannot read, so it is prompted with the boxes of the instances that a phrase names.

What it adds to the labels is its masks, and how sure it is of each. B images, P prompts, N instances of all prompts,
h x w mask cells, s side of the square frame that SAM sees.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import SamConfig, SamModel

from sam3dist.answers import MASK_LIMIT
from sam3dist.boxes import extents
from sam3dist.errors import CheckpointError, ConfigError, first_line
from sam3dist.models.checkpoint import quiet_transformers, require_exact
from sam3dist.models.source import files_sha256
from sam3dist.models.teacher import DTYPES, computes_bf16_fast, located_network, network_files
from sam3dist.targets import coverage, make_targets
from sam3dist.teaching.outputs import SURE, instance_outputs
from sam3dist.types import PromptBatch, SegOutputs

MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Of ImageNet's pixels, by channel."""
BOXES_AT_ONCE = 32
"""Each takes about 33 MB in the mask decoder."""
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


class SamTeacher:
    """A frozen SAM that answers prompts by the boxes of their instances; `autocast` is the encoder's precision."""

    feature_names: tuple[str, ...] = ()

    def __init__(self, net: SamModel, autocast: torch.dtype | None = None) -> None:
        self.net = net.requires_grad_(False).eval()
        self.autocast = autocast

    @property
    def image_size(self) -> int:
        """Side s of the frame in pixels."""
        return sam_image_size(self.net.config)

    def __call__(self, batch: PromptBatch) -> SegOutputs:
        """A query for each instance: SAM's mask, the box around it, and the IoU that SAM expects of it.

        Presence is the label. Crowds are marked in the semantic map as the labels have them: SAM is not asked.
        """
        batch = batch.to(self.net.device)
        known = make_targets(batch, (1, 1), self.net.device)  # only for its boxes
        prompts = torch.arange(len(batch.prompts), device=self.net.device)
        counts = torch.tensor(known.counts, device=self.net.device)
        image_of_box = batch.image_of_prompt[prompts.repeat_interleave(counts)]
        side = 4 * int(self.net.prompt_encoder.image_embedding_size[0])
        masks = known.boxes.new_zeros(len(known.boxes), side, side)
        ious = known.boxes.new_zeros(len(known.boxes))
        for index, size in enumerate(batch.image_sizes):
            chosen = (image_of_box == index).nonzero()[:, 0]
            if len(chosen):  # else nobody needs the encoder's answer
                masks[chosen], ious[chosen] = self._segment(batch.images[index], size, known.boxes[chosen])
        found = extents(masks > 0)
        outputs = instance_outputs(
            masks,
            torch.where(found.any(1, keepdim=True), found, known.boxes),
            ious.clamp(0.01, 0.99).logit(),
            known.counts,
            torch.where(batch.present, SURE, -SURE),
        )
        return replace(outputs, semantic_logits=outputs.semantic_logits.maximum(_crowds(batch, side).to(masks)))

    @torch.no_grad()
    def _segment(self, image: Tensor, size: tuple[int, int], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Mask logits [N, h, w] over the image, and expected IoUs [N], of boxes [N, 4] in shares of the image."""
        height, width = fitted(size, self.image_size)
        scope = nullcontext() if self.autocast is None else torch.autocast(image.device.type, dtype=self.autocast)
        with scope:  # the encoder only: boxes need more digits than half precision has
            embedding = self.net.get_image_embeddings(framed(image, (height, width), self.image_size)[None])
        corners = boxes * boxes.new_tensor([width, height, width, height])
        # One mask for each box: of its three others SAM's authors say they are for prompts as vague as a point.
        said = [
            self.net(image_embeddings=embedding.float(), input_boxes=some[None], multimask_output=False)
            for some in corners.split(BOXES_AT_ONCE)
        ]
        masks = torch.cat([some.pred_masks[0, :, 0] for some in said])
        shares = (height / self.image_size, width / self.image_size)
        return unframed(masks, shares), torch.cat([some.iou_scores[0, :, 0] for some in said])


def load_sam(source: str | Path, adapter: str | None, device: str | torch.device, precision: str) -> SamTeacher:
    """The SAM of a directory or a Hugging Face id, with the LoRA adapter of another directory merged into it.

    precision: "auto", "fp32", "bf16" or "fp16", of the image encoder. CheckpointError where a weight of either does
    not fit, ConfigError where peft is missing.
    """
    root = located_network(source)
    try:
        with quiet_transformers():
            loaded: Any = SamModel.from_pretrained(
                str(root),
                dtype=torch.float32,
                use_safetensors=True,  # a pickle could run code
                ignore_mismatched_sizes=True,  # so that they are named below
                output_loading_info=True,
            )
    except Exception as error:  # a foreign file can fail in any way
        raise CheckpointError(f"{source}: not a readable SamModel ({first_line(error)}).") from error
    net, info = loaded
    require_exact(
        source, missing=info["missing_keys"], unexpected=info["unexpected_keys"], misshapen=info["mismatched_keys"]
    )
    if adapter is not None:
        net = _adapted(net, adapter)
    if precision == "auto":
        precision = "bf16" if computes_bf16_fast(torch.device(device)) else "fp32"
    return SamTeacher(net.to(device), DTYPES.get(precision))


def sam_config(source: str | Path) -> SamConfig:
    """The configuration of `load_sam`'s network, without its weights."""
    file = located_network(source, ["config.json"]) / "config.json"
    try:
        return SamConfig(**json.loads(file.read_text(encoding="utf-8")))
    except Exception as error:  # a foreign file can fail in any way
        raise CheckpointError(f"{file}: no readable configuration of SAM ({first_line(error)}).") from error


def sam_image_size(config: SamConfig) -> int:
    """Side of the square frame in pixels."""
    vision: Any = config.vision_config
    return int(vision.image_size)


def sam_fingerprint(source: str | Path, adapter: str | None) -> str:
    """SHA-256 of the files of a SAM and of its adapter, the same wherever they lie."""
    return files_sha256([*network_files(source), *([] if adapter is None else _adapter_files(adapter))])


def fitted(size: tuple[int, int], side: int) -> tuple[int, int]:
    """The height and width of an image whose longest side became `side`, rounded as SAM does."""
    height, width = (int(extent * side / max(size) + 0.5) for extent in size)
    return max(height, 1), max(width, 1)


def framed(image: Tensor, size: tuple[int, int], side: int) -> Tensor:
    """A squashed uint8 image [3, S, S] as SAM was trained to see it: [3, side, side], normalised.

    SAM knows no squashed images. So the shape is given back, `size`, and the rest of the square left empty, to the
    right and below. That costs one more interpolation, but no detail: neither side of `size` is longer than `side`.
    """
    pixels = F.interpolate(image[None].float(), size=size, mode="bilinear", antialias=True)[0]
    mean, deviation = (pixels.new_tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    return F.pad((pixels - mean) / deviation, (0, side - size[1], 0, side - size[0]))


def unframed(masks: Tensor, shares: tuple[float, float]) -> Tensor:
    """Maps [N, h, w] over the frame as maps [N, h, w] over the image, which fills these shares of it from top left."""
    if shares == (1.0, 1.0):
        return masks
    down, across = shares
    corner = masks.new_tensor([[across, 0, across - 1], [0, down, down - 1]])
    grid = F.affine_grid(corner[None], [1, 1, *masks.shape[1:]], align_corners=False)
    return F.grid_sample(masks[None], grid, mode="bilinear", padding_mode="border", align_corners=False)[0]


def _crowds(batch: PromptBatch, side: int) -> Tensor:
    """Logits [P, side, side]: at their limit where a prompt's crowd is, at the other where not."""
    maps = np.full((len(batch.prompts), side, side), -MASK_LIMIT, dtype=np.float32)
    for cells, crowd in zip(maps, batch.ignore, strict=True):
        if crowd is not None:
            cells[coverage(crowd, (side, side)) >= 0.5] = MASK_LIMIT
    return torch.from_numpy(maps)


def _adapter_files(adapter: str) -> list[Path]:
    files = [Path(adapter) / name for name in ADAPTER_FILES]
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"teacher.adapter={adapter}: no {file.name} there; give what peft's save wrote.")
    return files


def _adapted(net: SamModel, adapter: str) -> SamModel:
    """The network with the adapter merged into its weights."""
    try:
        from peft import PeftConfig, PeftModel
    except ImportError:
        raise ConfigError(f"teacher.adapter={adapter} needs peft; pip install 'sam3dist[sam]'.") from None
    folder = str(_adapter_files(adapter)[0].parent)
    try:
        config = PeftConfig.from_pretrained(folder)
        wrapped: Any = PeftModel(net, config)
        loaded = wrapped.load_adapter(folder, "default")  # as PeftModel.from_pretrained, which only warns
    except Exception as error:  # a foreign file can fail in any way
        raise CheckpointError(f"teacher.adapter={adapter}: fits no SAM ({first_line(error)}).") from error
    require_exact(f"teacher.adapter={adapter}", missing=loaded.missing_keys, unexpected=loaded.unexpected_keys)
    if not hasattr(wrapped.base_model, "merge_and_unload"):
        raise CheckpointError(f"teacher.adapter={adapter}: a {config.peft_type} cannot be merged; use LoRA.")
    merged: SamModel = wrapped.merge_and_unload()
    return merged
