"""A teacher of a foreign kind: DeepLab v3 on MobileNet v2, which knows the 20 classes of Pascal VOC (TFLite).

    pip install ai-edge-litert
    VOC_TEACHER=FOLDER sam3dist teach small data.train=D distillation.gamma=0 \
        teacher.source=examples/voc_teacher.py:VocTeacher

FOLDER holds deeplabv3_mnv2_pascal_quant.tflite and pascal_voc_segmentation_labels.txt.
"""

import os
from pathlib import Path

import torch

from sam3dist.teaching.outputs import SURE, semantic_outputs
from sam3dist.types import PromptBatch, SegOutputs

FOLDER = Path(os.environ["VOC_TEACHER"])
SYNONYMS = {"airplane": "aeroplane", "couch": "sofa", "motorcycle": "motorbike", "tv": "tvmonitor"}
LEAST_SHARE = 0.001
"""Of the image; what is smaller is taken for a mistake."""


class VocTeacher:
    image_size = 513
    feature_names = ()
    files = (FOLDER / "deeplabv3_mnv2_pascal_quant.tflite", FOLDER / "pascal_voc_segmentation_labels.txt")

    def __init__(self) -> None:
        from ai_edge_litert.interpreter import Interpreter  # not before it is needed: a driver may lack it

        self.model = Interpreter(model_path=str(self.files[0]))
        self.model.allocate_tensors()
        self.classes = self.files[1].read_text().split("\n")[:21]

    def __call__(self, batch: PromptBatch) -> SegOutputs:
        maps = [self.classes_of(image) for image in batch.images]
        asked = zip(batch.prompts, batch.image_of_prompt, strict=True)
        masks = torch.stack([maps[image] == self.number(phrase) for phrase, image in asked]).float()
        cells = torch.nn.functional.avg_pool2d(masks, 3)  # 171 x 171: what part of each belongs to the class
        return semantic_outputs(cells.logit(0.02), torch.where(masks.mean((1, 2)) > LEAST_SHARE, SURE, -SURE))

    def classes_of(self, image: torch.Tensor) -> torch.Tensor:
        """The class of each pixel of an image [3, 513, 513]: [513, 513] int64."""
        self.model.set_tensor(self.model.get_input_details()[0]["index"], image.permute(1, 2, 0)[None].numpy())
        self.model.invoke()
        return torch.from_numpy(self.model.get_tensor(self.model.get_output_details()[0]["index"])[0])

    def number(self, phrase: str) -> int:
        """Of the class that a phrase names; -1 for none."""
        name = SYNONYMS.get(phrase.lower(), phrase.lower().replace(" ", ""))
        return self.classes.index(name) if name in self.classes[1:] else -1
