"""The frozen teacher is nobody's to shard or to update, whatever strategy trains the student."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from sam3dist.models.segmenter import Segmenter
from sam3dist.strategies.protocol import Strategy, make_strategy
from tests.sam3dist.runs import pupil_of, run
from tests.sam3dist.strategies.test_strategies import config_of


def updated_by(strategy: Strategy) -> list[nn.Parameter]:
    """The parameters whose gradients an update uses, as the optimizer of each library lists them."""
    if not hasattr(strategy, "engine"):
        return [weight for group in strategy.optimizer.param_groups for weight in group["params"]]
    optimizer = strategy.engine.optimizer
    groups = optimizer.fp16_groups if strategy.stage == 3 else optimizer.bit16_groups
    return [weight for group in groups for weight in group]


def test_the_teacher_stays_whole_frozen_and_out_of_the_optimizer(
    kind: dict[str, Any], tiny_teacher: Segmenter, tmp_path: Path
):
    config = config_of(kind, steps=2)
    strategy = make_strategy(config)
    before = {name: value.clone() for name, value in tiny_teacher.state_dict().items()}
    pupil = pupil_of(tiny_teacher, config)
    run(config, tiny_teacher, tmp_path, strategy=strategy, pupil=pupil)

    taught = dict(pupil.named_parameters())
    updated = {id(weight) for weight in updated_by(strategy)}
    for name, weight in tiny_teacher.named_parameters():
        assert type(weight) is nn.Parameter, name
        assert not isinstance(weight.data, DTensor)
        assert not hasattr(weight, "ds_id")  # what ZeRO-3 gives what it shards
        assert not hasattr(weight, "_hp_mapping")  # and ZeRO-1 and -2
        assert not weight.requires_grad
        assert weight.grad is None
        assert id(weight) not in updated
        assert all(weight is not other for other in taught.values())
        assert torch.equal(weight, before[name]), name
    # Nothing else is in there either: the trainable weights of the pupil, each once.
    assert len(updated) == len(updated_by(strategy)) == sum(weight.requires_grad for weight in taught.values())
    storages = {weight.untyped_storage().data_ptr() for weight in tiny_teacher.parameters()}
    if not hasattr(strategy, "engine") or strategy.stage != 3:  # which leaves empty tensors in the pupil
        local = (weight.to_local() if isinstance(weight, DTensor) else weight for weight in taught.values())
        assert not storages & {weight.untyped_storage().data_ptr() for weight in local}
