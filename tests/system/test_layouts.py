import pytest
import torch

from hvp_engine.kernels.fingerprint import fingerprint
from hvp_engine.system.layouts import dense_parts, kind_of

DENSE = torch.arange(24.0).view(4, 6) * (torch.arange(24).view(4, 6) % 3 == 0)


def nested(layout):
    return torch.nested.nested_tensor([DENSE[:1].clone(), DENSE[1:].clone()], layout=layout)


KINDS = {
    "coo": ("sparse", DENSE.to_sparse),
    "not coalesced": ("sparse", lambda: torch.sparse_coo_tensor([[0, 0], [1, 1]], [1.0, 2.0], (4, 6))),
    "csr": ("sparse", DENSE.to_sparse_csr),
    "csc": ("sparse", DENSE.to_sparse_csc),
    "bsr": ("sparse", lambda: DENSE.to_sparse_bsr((2, 2))),
    "bsc": ("sparse", lambda: DENSE.to_sparse_bsc((2, 2))),
    "jagged": ("nested", lambda: nested(torch.jagged)),
    "nested": ("nested", lambda: nested(torch.strided)),
    "quantised": ("quantised", lambda: torch.quantize_per_tensor(DENSE, 0.5, 0, torch.qint8)),
}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_named_and_comes_apart_into_dense_tensors(name):
    kind, make = KINDS[name]
    assert kind_of(make()) == kind
    parts = dense_parts(make())
    assert parts and all(kind_of(part) is None for part in parts)


@pytest.mark.parametrize("name", KINDS)
def test_other_numbers_are_another_fingerprint(name):
    make = KINDS[name][1]
    known = fingerprint(make())
    assert fingerprint(make()) == known
    if name == "quantised":
        changed = torch.quantize_per_tensor(DENSE + 1, 0.5, 0, torch.qint8)
    elif name in ("jagged", "nested"):
        changed = make()
        dense_parts(changed)[1][0, 0] += 1
    else:
        changed = make() * 2
    assert fingerprint(changed) != known


def test_a_dense_tensor_is_its_own_part():
    assert kind_of(DENSE) is None and kind_of(DENSE.t()) is None
    assert dense_parts(DENSE)[0] is DENSE
