"""Batches straight from the generator, without files: every scene is new."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import nn
from torch.utils.data import IterableDataset, get_worker_info

from sam3dist.data.masks import encode_mask
from sam3dist.data.samples.phrases import FORMS, Question, scene_questions
from sam3dist.data.samples.scenes import SPLITS, Scene, make_scene
from sam3dist.types import PromptBatch

IMAGE_SIZE = 96
"""Input side of the embedded teacher in pixels."""


class SceneBatches(IterableDataset):
    """Endless batches of fresh scenes; a step is a function of the seed and its number alone."""

    def __init__(
        self, images: int, prompts: int, first_step: int = 0, forms: Mapping[tuple[str, ...], float] = FORMS
    ) -> None:
        self.images, self.prompts, self.first_step, self.forms = images, prompts, first_step, forms

    def __iter__(self) -> Iterator[PromptBatch]:
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        step = self.first_step + number
        while True:
            yield scene_batch([(SPLITS["teacher"], step, k) for k in range(self.images)], self.prompts, self.forms)
            step += count


def scene_batch(
    seeds: list[tuple[int, ...]],
    prompts: int | None,
    forms: Mapping[tuple[str, ...], float] = FORMS,
    side: int = 192,
) -> PromptBatch:
    """The scenes of these seeds with at most `prompts` phrases each, half of them naming nothing at most."""
    images, phrases, image_of_prompt, masks = [], [], [], []
    for index, seed in enumerate(seeds):
        scene = make_scene(seed, side)
        questions = scene_questions(scene.things, np.random.default_rng((*seed, 1)), asked_forms=forms)
        images.append(squash(scene, IMAGE_SIZE))
        for question in _balanced(questions, prompts):
            phrases.append(question.phrase)
            image_of_prompt.append(index)
            masks.append(tuple(encode_mask(scene.masks[instance]) for instance in question.instances))
    return PromptBatch(
        images=torch.stack(images),
        image_ids=tuple(range(len(seeds))),
        image_sizes=((side, side),) * len(seeds),
        prompts=tuple(phrases),
        image_of_prompt=torch.tensor(image_of_prompt),
        present=torch.tensor([bool(instances) for instances in masks]),
        masks=tuple(masks),
        ignore=(None,) * len(phrases),
        exhaustive=torch.ones(len(phrases), dtype=torch.bool),
    )


def _balanced(questions: list[Question], count: int | None) -> list[Question]:
    if count is None:
        return questions
    positives = [question for question in questions if question.instances]
    negatives = [question for question in questions if not question.instances]
    kept = negatives[: count * 2 // 5]
    return positives[: count - len(kept)] + kept


def squash(scene: Scene, image_size: int) -> torch.Tensor:
    pixels = torch.from_numpy(scene.image).permute(2, 0, 1)[None].float()
    small = nn.functional.interpolate(pixels, size=(image_size, image_size), mode="bilinear", antialias=True)
    return small[0].round().to(torch.uint8)
