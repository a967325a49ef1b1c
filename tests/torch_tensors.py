"""Tensors of torch, by `make test-torch`: it is too large to be installed for every run of the other tests."""

from __future__ import annotations

import torch

from flame.objects import codecs
from unit.test_objects_codecs import there_and_back


def test_tensors_travel_without_pickling() -> None:
    for tensor in (
        torch.arange(6).reshape(2, 3),
        torch.arange(6).reshape(2, 3).t(),
        torch.ones(3, dtype=torch.bfloat16),
        torch.tensor([True, False]),
        torch.zeros(0),
        torch.tensor(1.5),
    ):
        assert codecs.encode(tensor).to_bytes()[:4] == codecs.TENSOR
        got = there_and_back(tensor)
        assert got.dtype == tensor.dtype
        assert torch.equal(got, tensor)
        got.zero_()  # the caller's own
    grown = torch.ones(2, requires_grad=True)
    assert there_and_back(grown).requires_grad
