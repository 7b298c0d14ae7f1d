"""A smaller student starts from its teacher instead of from noise."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import Sam3Model

from sam3dist.models.inheritance.fit import Reading, fitted_reading, planned_reading
from sam3dist.models.inheritance.plan import even_plan, measured_plan, weight_plan
from sam3dist.models.inheritance.presence import correct_presence
from sam3dist.models.inheritance.survey import survey_activity
from sam3dist.models.inheritance.taylor import survey_taylor
from sam3dist.models.inheritance.transfer import Inherited, same_shape, transfer
from sam3dist.models.segmenter import Segmenter
from sam3dist.types import PromptBatch

MEASURED = ("pca", "importance")


def inherit_weights(
    student: Sam3Model, teacher: Segmenter, init: str = "copy", calibration: Sequence[PromptBatch] = ()
) -> Inherited:
    """Fill the student in place from the teacher, in one of four ways; a student of its shape becomes its copy.

    copy: layers and channels evenly spaced, as they are.
    svd: the basis of each tower's stream, its heads and hidden channels chosen by the weights alone.
    pca: layers by their influence, heads and hidden channels by what they contribute, each tower's stream in the
    basis of its principal directions; then every linear map is fitted to what is left for it to read.
    importance: layers, heads, hidden channels and channels of the streams by their Taylor scores, then fitted as
    for pca. These two look at the teacher's work on the calibration batches.
    """
    net = teacher.net
    if init == "copy":
        return transfer(even_plan(student, net), Reading(), student, net)
    if init == "svd":
        plan = weight_plan(student, net)
        return transfer(plan, planned_reading(plan, net), student, net)
    assert init in MEASURED, init
    if same_shape(student, net):
        return transfer(even_plan(student, net), Reading(), student, net)
    assert calibration, f"init={init} needs calibration batches"
    survey = survey_activity(teacher, calibration) if init == "pca" else survey_taylor(teacher, calibration)
    plan = measured_plan(student, net, survey)
    reading = fitted_reading(plan, student, teacher, calibration)
    inherited = transfer(plan, reading, student, net)
    assert reading.presence is not None
    correct_presence(Segmenter(student, teacher.tokenizer), reading.presence, calibration)
    return inherited.projecting("detr_decoder.presence_head.layer3.")
