"""FSDP2: every process keeps its share of each parameter, of its gradient and of its moments."""

from __future__ import annotations

import warnings
from itertools import takewhile

from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from mmkt.learner import Learner
from mmkt.parts import ConfigError
from mmkt.types import Encoder

# nothing here writes into what an encoder or the model returns
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


def shard(learner: Learner, accelerator: Accelerator) -> None:
    """Move a learner to its device, sharded in place by ``fully_shard`` (Zhao et al., 2023; Rajbhandari et al., 2020).

    What is gathered at once to be computed with: a layer of an encoder, the rest of an encoder, the rest of the model, an
    objective. So each can be called without the learner, in evaluation. Names, shapes and meaning of parameters stay.
    Parameters are gathered in float32 and autocast is left to mixed precision, so that ``train.precision`` means the
    same under every launcher.

    Args:
        learner: on the CPU.
        accelerator: with an FSDP2 plugin, of which ``reshard_after_forward`` and ``cpu_offload`` count.

    Raises:
        ConfigError: a parameter is a number without dimensions, which can't be sharded.
    """
    numbers = [name for name, p in learner.named().items() if p.ndim == 0]
    if numbers:
        words = "has the shape (), which FSDP2 cannot shard: give it the shape (1,), or launch with ddp.yaml"
        raise ConfigError([(numbers[0], words)])
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    plugin = accelerator.state.fsdp_plugin
    # with CPUOffloadPolicy (fsdp_offload_params) shards, their gradients and moments stay on the CPU
    options = {"reshard_after_forward": plugin.reshard_after_forward, "offload_policy": plugin.cpu_offload, "mesh": mesh}
    for encoder in learner.model.encoders.values():
        for layer in layers(encoder):
            fully_shard(layer, **options)
        fully_shard(encoder, **options)
    for part in (learner.model, *(o for o in learner.objectives.values() if any(True for _ in o.parameters()))):
        fully_shard(part, **options)
    fully_shard(learner, mesh=mesh, offload_policy=plugin.cpu_offload)


def layers(encoder: Encoder) -> list[nn.Module]:
    """An encoder's layers, the innermost first: all items of each numbered list of which one item is a stage.

    (timm counts the last norm to the last block's stage, so that stages alone would miss that block.)
    """
    lists = set()
    for names in encoder.stages():
        places = zip(*(name.split(".")[:-1] for name in names))
        shared = [place[0] for place in takewhile(lambda place: len(set(place)) == 1, places)]
        if shared and shared[-1].isdigit():
            lists.add(tuple(shared[:-1]))
    items = [item for path in sorted(lists, key=len, reverse=True) for item in encoder.get_submodule(".".join(path)).children()]
    return [item for item in items if any(True for _ in item.parameters())]
