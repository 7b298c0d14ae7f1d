"""First stage of the embedded teacher: its vision encoder learns what lies in each cell of a scene.

A transformer that sees only phrases and masks learns colours soon and shapes very late. Asked for shape, colour,
texture and size of every cell at once, it learns them from a tenth of the images: each scene gives hundreds of labels.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from sam3dist.data.samples.live import squash
from sam3dist.data.samples.scenes import SPLITS, Scene, make_scene
from sam3dist.data.samples.vocabulary import COLOURS, SHAPES, SIZES, TEXTURES
from sam3dist.models.segmenter import Segmenter

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "texture": TEXTURES,
    "size": tuple(SIZES),
}


COARSEST = 2
"""Of the neck's levels, the last that the network uses."""

CELLS_PER_PATCH = 2
"""Cells along a side of a patch that are labelled apart."""


class LabelledScenes(IterableDataset):
    """Endless fresh scenes with their labels: images uint8 [B, 3, H, W] and int64 [B, attributes, cells, cells]."""

    def __init__(self, images: int, image_size: int, cells: int, first_step: int = 0) -> None:
        self.images, self.image_size, self.cells, self.first_step = images, image_size, cells, first_step

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        worker = get_worker_info()
        step, count = (self.first_step + worker.id, worker.num_workers) if worker else (self.first_step, 1)
        while True:
            scenes = [make_scene((SPLITS["teacher"], step, number, 7), side=128) for number in range(self.images)]
            images = torch.stack([squash(scene, self.image_size) for scene in scenes])
            yield images, torch.stack([cell_labels(scene, self.cells) for scene in scenes])
            step += count


def coarsest_map(segmenter: Segmenter, pictures: Tensor) -> Tensor:
    """The level of the neck that meets the words, [B, C, g, g], without the finer ones, which cost more than it."""
    vision = segmenter.net.vision_encoder
    tokens = vision.backbone(segmenter.normalised(pictures)).last_hidden_state
    return vision.neck.fpn_layers[COARSEST](segmenter.as_map(tokens))


def muon_and_adamw(modules: Sequence[nn.Module]) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon for the matrices of linear layers, AdamW for the rest.

    With AdamW alone, as much accuracy on shapes took more than twice the scenes (seen in `pretrain_vision`).
    """
    linear = [part.weight for module in modules for part in module.modules() if isinstance(part, nn.Linear)]
    matrices = [weight for weight in linear if weight.requires_grad]
    known = {id(weight) for weight in matrices}
    rest = [p for module in modules for p in module.parameters() if p.requires_grad and id(p) not in known]
    return (
        torch.optim.Muon(matrices, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, weight_decay=0.02),
    )


def update(optimizers: Sequence[torch.optim.Optimizer], learning_rate: float) -> None:
    """One step of each at this learning rate; gradients are gone afterwards."""
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = learning_rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def cell_labels(scene: Scene, cells: int) -> Tensor:
    """Which value of each attribute a cell's middle shows, 0 for the background: int64 [attributes, cells, cells]."""
    side = scene.image.shape[0]
    middles = ((np.arange(cells) + 0.5) * side / cells).astype(int)
    shown = scene.masks[:, middles][:, :, middles]  # [N, cells, cells]
    labels = np.zeros((len(ATTRIBUTES), cells, cells), dtype=np.int64)
    for thing, where in zip(scene.things, shown, strict=True):
        for index, (attribute, values) in enumerate(ATTRIBUTES.items()):
            labels[index][where] = 1 + values.index(getattr(thing, attribute))
    return torch.from_numpy(labels)


def pretrain_vision(segmenter: Segmenter, steps: int, images: int, learning_rate: float, first_step: int = 0) -> None:
    """Trains the vision transformer in place, with a head that is thrown away; prints its accuracy on things."""
    vision = segmenter.net.vision_encoder
    cells = CELLS_PER_PATCH * segmenter.grid
    values = [1 + len(names) for names in ATTRIBUTES.values()]
    # On the map that meets the words, not on the transformer's tokens: what is there to read is there to be named.
    head = nn.Conv2d(segmenter.feature_widths["vision"], CELLS_PER_PATCH**2 * sum(values), kernel_size=1)
    optimizers = muon_and_adamw((vision, head))
    batches = DataLoader(
        LabelledScenes(images, segmenter.image_size, cells, first_step), batch_size=None, num_workers=1
    )
    started = time.monotonic()
    vision.train()
    for step, (pictures, labels) in zip(range(1, steps + 1), batches, strict=False):
        logits = F.pixel_shuffle(head(coarsest_map(segmenter, pictures)), CELLS_PER_PATCH).split(values, dim=1)
        losses = [F.cross_entropy(logits[i], labels[:, i]) for i in range(len(values))]
        loss = torch.stack(losses).sum()
        loss.backward()
        update(optimizers, learning_rate * min(1.0, step / 50, 1.02 - step / steps))
        if step % 25 == 0 or step == steps:
            on_things = labels[:, 0] > 0
            accuracy = {
                name: round(float((logits[i].argmax(1) == labels[:, i])[on_things].float().mean()), 3)
                for i, name in enumerate(ATTRIBUTES)
            }
            seconds = (time.monotonic() - started) / step
            print(f"vision step {step} {seconds:.2f} s/step loss {loss.item():.3f} {accuracy}", flush=True)
