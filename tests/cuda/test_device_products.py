"""Operators of a model on an emulated CUDA device take vectors from anywhere, and answer on the device."""

from __future__ import annotations

import os
from unittest.mock import patch

import numpy as np
import pytest
import torch
from device_process import on_device
from problems import dense_hessian, mlp

import hvp_engine as he

pytestmark = pytest.mark.usefixtures("emulated_device")


@on_device
def test_vectors_from_the_host_and_the_device_give_products_on_the_device():
    case, dense = mlp(), dense_hessian(mlp())
    with patch.dict(os.environ, HVP_ENGINE_BACKEND="cuda"):
        op = he.HessianOperator(case.model.to("cuda"), case.loss, data=case.data)
        v = torch.randn(111, 2)
        wanted = dense @ v.double()
        for given in (v, v.to("cuda")):
            found = op @ given
            assert found.device.type == "cuda"
            torch.testing.assert_close(found.cpu().double(), wanted, rtol=1e-5, atol=1e-6)
        assert isinstance(op @ v.numpy(), np.ndarray)
        np.testing.assert_allclose(op.scipy().matmat(v.numpy()), wanted, rtol=1e-5, atol=1e-6)
        named = op.unflatten("full", v[:, 0])
        product = op.flatten("full", op @ named)
        assert product.device.type == "cuda"
        torch.testing.assert_close(product.cpu().double(), wanted[:, 0], rtol=1e-5, atol=1e-6)


@on_device
def test_matrices_and_what_lies_between_blocks_are_those_of_the_cpu():
    def run(backend, device):
        case = mlp()
        model = case.model.to(device)
        options = {"data": case.data, "progress": False, "precision": "fp32"}
        with patch.dict(os.environ, HVP_ENGINE_BACKEND=backend):
            matrix = he.dense(model, case.loss, ["4.weight"], **options)["4.weight"]
            return matrix.cpu(), he.off_diagonal(model, case.loss, "module", probes=3, **options)

    (matrix, between), (wanted, expected) = run("cuda", "cuda"), run("native", "cpu")
    torch.testing.assert_close(matrix, wanted, rtol=1e-4, atol=1e-6)
    assert torch.equal(matrix, matrix.T)
    np.testing.assert_allclose(between.sums, expected.sums, rtol=1e-4, atol=1e-6)
