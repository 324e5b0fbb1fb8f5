"""Fingerprints: the same for the same content, others for others, whatever the dtype, layout and size."""

from __future__ import annotations

import pytest
import torch

from hvp_engine.kernels import loader
from hvp_engine.kernels.fingerprint import fingerprint

SIZES = (0, 1, 3, 7, 1000, 9001, 70_001)


@pytest.fixture(params=["native", "torch"], autouse=True)
def with_and_without_the_extension(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make fingerprints both ways."""
    if request.param == "torch":
        monkeypatch.setattr(loader, "missing_reason", "left out by the test")


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int8, torch.bool, torch.complex64]
)
@pytest.mark.parametrize("size", SIZES)
def test_a_changed_entry_changes_the_fingerprint(dtype: torch.dtype, size: int) -> None:
    torch.manual_seed(0)
    tensor = torch.randn(size).mul_(3).to(dtype)
    known = fingerprint(tensor)
    assert fingerprint(tensor.clone()) == known
    for place in sorted({0, size // 2, size - 1}) if size else ():
        changed = tensor.clone()
        changed[place] = not changed[place] if dtype == torch.bool else changed[place] + 1
        assert fingerprint(changed) != known


@pytest.mark.parametrize("size", [1000, 70_001])
def test_entries_that_change_places_change_the_fingerprint(size: int) -> None:
    tensor = torch.arange(size, dtype=torch.float32)
    for a, b in ((0, 1), (0, 2), (3, size - 1), (1, min(65_537, size - 1))):
        changed = tensor.clone()
        changed[a], changed[b] = tensor[b], tensor[a]
        assert fingerprint(changed) != fingerprint(tensor)


def test_views_and_strides_are_fingerprinted_by_their_content() -> None:
    tensor = torch.randn(200, 301)
    assert fingerprint(tensor.T) == fingerprint(tensor.T.contiguous())
    assert fingerprint(tensor[1:]) == fingerprint(tensor[1:].clone())
    assert fingerprint(tensor.reshape(-1)[1:]) == fingerprint(tensor.reshape(-1)[1:].clone())
    turned = torch.view_as_complex(tensor[:, :300].reshape(200, 150, 2).contiguous())
    assert fingerprint(turned.conj()) == fingerprint(turned.conj().resolve_conj().clone()) != fingerprint(turned)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_signs_that_change_together_change_the_fingerprint(dtype: torch.dtype) -> None:
    tensor = torch.randn(70_001, dtype=torch.float64).to(dtype)
    for count in (2, 4, 70_000, 70_001):
        changed = tensor.clone()
        changed[:count].neg_()
        assert fingerprint(changed) != fingerprint(tensor)


@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support")
def test_sparse_tensors_have_fingerprints() -> None:
    dense = torch.eye(4)
    changed = dense.clone()
    changed[0, 0] = 2.0
    for convert in (torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr, torch.Tensor.to_sparse_csc):
        assert fingerprint(convert(dense)) == fingerprint(convert(dense.clone()))
        assert fingerprint(convert(dense)) != fingerprint(convert(changed))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_have_fingerprints(layout: torch.layout) -> None:
    parts = [torch.ones(2, 3), torch.ones(4, 3)]
    known = fingerprint(torch.nested.nested_tensor(parts, layout=layout))
    assert fingerprint(torch.nested.nested_tensor(parts, layout=layout)) == known
    parts[1][3, 2] = 2.0
    assert fingerprint(torch.nested.nested_tensor(parts, layout=layout)) != known
