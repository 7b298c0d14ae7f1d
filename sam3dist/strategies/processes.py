"""Which device this process has, and what it shares with the other processes of the run."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sam3dist.errors import ResourceError

if TYPE_CHECKING:
    from sam3dist.config.distill import StrategyConfig


def own_device(strategy: StrategyConfig) -> torch.device:
    """The GPU that the launcher gave this process, by LOCAL_RANK, or the CPU.

    Ray and torchrun both set LOCAL_RANK and let every process see the GPUs of all workers on its machine.
    """
    if not strategy.use_gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ResourceError("strategy.use_gpu=true but this process sees no GPU; set strategy.use_gpu=false.")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def rank_and_size() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) outside a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def join_group(device: torch.device) -> None:
    """Make sure that a process group exists: the launcher's, else a group of this process alone.

    Sharded strategies need a group even when there is nobody to share with.
    """
    if dist.is_initialized():
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of this tensor over all ranks; the tensor itself when there is one. All ranks call it together."""
    if rank_and_size()[1] == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def share_statistics(network: nn.Module) -> None:
    """Let every evaluation of this network begin with the means of what the ranks' BatchNorms have counted.

    Each rank counts the images it trained on, and would else evaluate and save a network of its own. While training
    nothing needs to be shared: there each batch is normalised by itself.
    """

    def agree(module: nn.Module, _inputs: object) -> None:
        if not module.training:
            average_statistics(module)

    if rank_and_size()[1] > 1 and _norms(network):
        network.register_forward_pre_hook(agree)


def average_statistics(network: nn.Module) -> None:
    """Give the BatchNorms of all ranks the means of what each has counted. All ranks call it together."""
    norms, world_size = _norms(network), rank_and_size()[1]
    if world_size == 1 or not norms:
        return
    counted: list[Any] = [value for norm in norms for value in (norm.running_mean, norm.running_var)]
    means = sum_over_ranks(torch.cat(counted)) / world_size
    for value, mean in zip(counted, means.split([len(value) for value in counted]), strict=True):
        value.copy_(mean)


def _norms(network: nn.Module) -> list[_BatchNorm]:
    return [part for part in network.modules() if isinstance(part, _BatchNorm)]


def counts_of_all_ranks(counts: Mapping[str, int]) -> dict[str, int]:
    """The sums of these counts over all ranks, which may know different names. All ranks call it together."""
    world_size = rank_and_size()[1]
    if world_size == 1:
        return dict(counts)
    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, dict(counts))
    return dict(sum(map(Counter, gathered), Counter()))


def any_of_each(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """Of each flag, whether it is set on any rank. All ranks call it together."""
    if rank_and_size()[1] == 1:
        return list(flags)
    return [count > 0 for count in sum_over_ranks(torch.tensor(flags, dtype=torch.float32, device=device)).tolist()]


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any rank. All ranks call it together."""
    return any_of_each((flag,), device)[0]


def from_first_rank(value: Any) -> Any:
    """What rank 0 gives here. All ranks call it together."""
    if rank_and_size()[1] == 1:
        return value
    given = [value]
    dist.broadcast_object_list(given, src=0)
    return given[0]


@torch.no_grad()
def share_weights(module: nn.Module, device: torch.device) -> None:
    """Give the parameters and buffers of rank 0 to every rank, by way of `device`. All ranks call it together."""
    if rank_and_size()[1] == 1:
        return
    for tensor in (*module.parameters(), *module.buffers()):
        moved = tensor.detach().to(device).contiguous()
        dist.broadcast(moved, src=0)
        tensor.copy_(moved)


def barrier() -> None:
    """Returns once every rank is here."""
    if dist.is_initialized():
        dist.barrier()
