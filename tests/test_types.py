"""The types: what a device move, a pytree and torch's export see of them."""

from __future__ import annotations

import torch
from torch.utils import _pytree as pytree

from mmkt.types import Batch, Encoded, Fused, Row


def batch() -> Batch:
    row = torch.arange(3)
    inputs = {"text": {"input_ids": torch.ones(3, 2, dtype=torch.long)}, "image": Encoded.of(torch.randn(3, 4))}
    return Batch(inputs, {"text": row > 0}, {"y": row}, {"y": row > 0}, {"weak": {}}, row, row, row, row)


def test_a_batch_is_a_pytree_that_keeps_its_types():
    doubled = pytree.tree_map(lambda x: x * 2 if x.is_floating_point() else x, batch())
    assert isinstance(doubled, Batch)
    assert isinstance(doubled.inputs["image"], Encoded)
    assert len(pytree.tree_leaves(batch())) == 1 + 4 + 1 + 1 + 1 + 4


def test_to_moves_every_tensor():
    moved = batch().to("meta")
    assert {x.device.type for x in pytree.tree_leaves(moved)} == {"meta"}
    assert moved.size == 3


def test_encoded_of_a_summary_is_one_token():
    pooled, present = torch.randn(3, 4), torch.tensor([True, False, True])
    encoded = Encoded.of(pooled, present)
    assert torch.equal(encoded.tokens[:, 0], pooled)
    assert encoded.mask.all()
    assert encoded.mask.shape == (3, 1)
    assert torch.equal(encoded.present, present)


def test_fused_has_no_shared_defaults():
    """A default dict of a NamedTuple would be one dict for all calls."""
    assert not Fused._field_defaults
    assert Row._field_defaults == {}
