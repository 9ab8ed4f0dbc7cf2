"""What several processes need of one another. With one process everything here is the identity."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank() -> int:
    """This process's number."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def say(*words: object) -> None:
    """Print on rank 0, to standard error: standard output belongs to figures."""
    if rank() == 0:
        import sys

        print(*words, file=sys.stderr, flush=True)


def total(x: Tensor) -> Tensor:
    """The sum over all processes, without gradient."""
    x = x.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(x)
    return x


def everyone(value: Any) -> list[Any]:
    """Every process's value (picklable), in rank order."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_first(value: Any) -> Any:
    """Rank 0's value, everywhere: decisions that stop or branch are made once."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def wait() -> None:
    """Until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def is_sharded(module: nn.Module) -> bool:
    """Whether each process holds its share of a module's parameters alone (see ``sharding``)."""
    return hasattr(module, "reshard")  # torch's FSDPModule: that import alone takes every process half a second


def whole(x: Tensor) -> Tensor:
    """The tensor itself, or all of one that is sharded: then every process asks for it."""
    full: Callable[[], Tensor] | None = getattr(x, "full_tensor", None)
    return full() if full else x


def collected(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors on the CPU of rank 0, one gathered at a time; the other processes ask too and get none."""
    found = {}
    for name, tensor in tensors.items():
        value = whole(tensor.detach())
        if rank() == 0:
            found[name] = value.cpu()
    return found


def placed_like(x: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, which every process has, on the device of another and sharded as that one is."""
    if hasattr(other, "full_tensor"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(other, DTensor)
        return distribute_tensor(x.to(other.device), other.device_mesh, other.placements, src_data_rank=None)
    return x.to(other.device)


def share_buffers(module: nn.Module) -> None:
    """Give every process rank 0's buffers: statistics of a batch norm are each process's own."""
    share(module.buffers())


def share(tensors: Iterable[Tensor]) -> None:
    """Give every process rank 0's values of some tensors, in place; none of them is sharded."""
    if world_size() > 1:
        for tensor in tensors:
            value = tensor.contiguous()
            dist.broadcast(value, src=0)
            tensor.copy_(value)


def is_lost(error: RuntimeError) -> bool:
    """Whether an error says that another process does not answer; gloo says so in a plain RuntimeError."""
    return world_size() > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error).lower())


class _Gather(torch.autograd.Function):
    """All-gather whose backward sums what every process sends back to a row (the true gradient of the sum of losses)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = x.shape[0]
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def gather(x: Tensor, *, remote: bool = True) -> Tensor:
    """Rows of all processes, (world · B, …), with gradient. Every process has the same B.

    Args:
        x: this process's rows.
        remote: a row has its gradient from what every process makes of it; else from what its own process does.
    """
    if world_size() == 1:
        return x
    if remote:
        return _Gather.apply(x)
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    parts[rank()] = x
    return torch.cat(parts)


def most(number: int) -> int:
    """The largest of all processes' numbers."""
    return max(everyone(number))


def pass_on(*tensors: Tensor) -> list[Tensor]:
    """Give tensors to the next process, and have those of the one before; shapes are the same everywhere. Without gradient."""
    if world_size() == 1:
        return list(tensors)
    after, before = (rank() + 1) % world_size(), (rank() - 1) % world_size()
    found = [torch.empty_like(x) for x in tensors]
    moves = [dist.P2POp(dist.isend, x.contiguous(), after) for x in tensors]
    moves += [dist.P2POp(dist.irecv, x, before) for x in found]
    for work in dist.batch_isend_irecv(moves):
        work.wait()
    return found
