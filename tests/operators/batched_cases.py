"""Functions of a few tensors, with shapes at which a wrong shape would broadcast: one row, one column, equal sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvp_engine import ops

Shape = tuple[int, ...]
Function = Callable[..., Tensor]
Shapes = list[tuple[Shape, ...]]

ROWS: Shapes = [((5, 3),), ((1, 3),), ((4, 1),), ((1, 1),), ((3, 3),), ((2, 1, 2),)]
PAIRS: Shapes = [((4, 3), (4, 3)), ((4, 3), (3,)), ((1, 3), (4, 1)), ((1, 1), (2, 3)), ((3, 3), (3, 3)), ((2, 2), ())]
IMAGES: Shapes = [((2, 2, 4, 6),), ((1, 1, 4, 4),), ((2, 1, 2, 2),), ((1, 2, 2, 4),)]


@dataclass(frozen=True)
class BatchedCase:
    """One function and the shapes that it is tried with."""

    name: str
    function: Function
    shapes: Shapes


def labels(rows: int, classes: int) -> Tensor:
    return torch.arange(rows) % classes


def parameters_of(shapes: tuple[Shape, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def constant(*shape: int) -> Tensor:
    return torch.linspace(-1.2, 1.7, max(1, int(torch.tensor(shape).prod()))).double().reshape(shape)


def cross_entropy(x: Tensor) -> Tensor:
    return F.cross_entropy(x, labels(*x.shape[:2]))


def conv(dimension: int, transposed: bool = False, **options: int) -> Function:
    function = getattr(F, f"conv{'_transpose' if transposed else ''}{dimension}d")
    return lambda x, w, b: function(x, w, b, **options)


def batch_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.batch_norm(x, constant(x.shape[1]), constant(x.shape[1]).abs() + 1, w, b, training=False)


def batch_statistics(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, w, b, training=True)


def recurrent(kind: str) -> Function:
    def function(x: Tensor, w_ih: Tensor, w_hh: Tensor, b: Tensor) -> Tensor:
        cell = getattr(nn, kind)(x.shape[-1], w_hh.shape[1]).double()
        named = {"weight_ih_l0": w_ih, "weight_hh_l0": w_hh, "bias_ih_l0": b, "bias_hh_l0": 0.5 * b}
        out: Tensor = torch.func.functional_call(cell, named, (x,))[0]
        return out

    return function


def recurrent_shapes(gates: int) -> Shapes:
    sizes = ((3, 2, 2, 3), (1, 1, 1, 1), (2, 1, 3, 3), (1, 2, 1, 2))
    return [((t, n, i), (gates * h, i), (gates * h, h), (gates * h,)) for t, n, i, h in sizes]


def convolutions() -> list[BatchedCase]:
    line: Shapes = [((2, 2, 5), (4, 2, 3), (4,)), ((1, 1, 3), (1, 1, 3), (1,)), ((1, 2, 3), (2, 2, 1), (2,))]
    plane: Shapes = [
        ((2, 2, 4, 4), (4, 2, 3, 3), (4,)),
        ((1, 1, 3, 3), (1, 1, 3, 3), (1,)),
        ((1, 2, 3, 3), (2, 2, 1, 1), (2,)),
    ]
    grouped: Shapes = [
        ((3, 2, 4, 4), (4, 1, 3, 3), (4,)),
        ((1, 2, 3, 3), (2, 1, 1, 1), (2,)),
        ((2, 2, 3, 3), (2, 1, 3, 3), (2,)),
    ]
    depth: Shapes = [((2, 1, 2, 3, 3), (2, 1, 2, 2, 2), (2,)), ((1, 1, 1, 1, 1), (1, 1, 1, 1, 1), (1,))]
    upward: Shapes = [
        ((2, 2, 3, 3), (2, 4, 2, 2), (4,)),
        ((1, 1, 1, 1), (1, 1, 2, 2), (1,)),
        ((1, 2, 2, 2), (2, 2, 1, 1), (2,)),
    ]
    return [
        BatchedCase("conv1d", conv(1), line),
        BatchedCase("conv2d", conv(2, padding=1), plane),
        BatchedCase("strided conv2d", conv(2, stride=2, padding=1, dilation=1), plane),
        BatchedCase("grouped conv2d", conv(2, groups=2), grouped),
        BatchedCase("conv3d", conv(3), depth),
        BatchedCase("transposed conv2d", conv(2, transposed=True, stride=2), upward),
        BatchedCase(
            "grouped transposed conv2d",
            conv(2, transposed=True, groups=2),
            [((2, 4, 3, 3), (4, 1, 2, 2), (2,)), ((1, 2, 1, 1), (2, 1, 1, 1), (2,))],
        ),
    ]


def normalisations() -> list[BatchedCase]:
    channels: Shapes = [((4, 3), (3,), (3,)), ((2, 1), (1,), (1,)), ((2, 2, 3), (2,), (2,)), ((1, 2, 2, 2), (2,), (2,))]
    return [
        BatchedCase("batch norm in eval mode", batch_norm, channels),
        BatchedCase("batch norm in train mode", batch_statistics, channels),
        BatchedCase(
            "instance norm",
            lambda x, w, b: F.instance_norm(x, weight=w, bias=b),
            [((2, 3, 4), (3,), (3,)), ((1, 1, 2, 2), (1,), (1,)), ((1, 2, 2, 2), (2,), (2,))],
        ),
        BatchedCase(
            "layer norm of plain PyTorch",
            lambda x, w, b: F.layer_norm(x, w.shape, w, b),
            [((4, 3), (3,), (3,)), ((1, 1, 2), (2,), (2,)), ((1, 2, 2), (2, 2), (2, 2)), ((3, 3), (3,), (3,))],
        ),
        BatchedCase(
            "rms norm of plain PyTorch",
            lambda x, w: F.rms_norm(x, w.shape, w, 1e-6),
            [((4, 3), (3,)), ((1, 1, 2), (2,)), ((3, 3), (3,))],
        ),
        BatchedCase("local response norm", lambda x: F.local_response_norm(x, 2), IMAGES),
        BatchedCase("normalize", lambda x: F.normalize(x, dim=-1), ROWS),
        BatchedCase("weight norm", lambda v, g: torch._weight_norm(v, g, 0), [((3, 2), (3, 1)), ((1, 2), (1, 1))]),
    ]


def matrix_products() -> list[BatchedCase]:
    products: Shapes = [((4, 3), (3, 2)), ((1, 3), (3, 1)), ((1, 1), (1, 1)), ((2, 1), (1, 2)), ((3, 3), (3, 3))]
    stacked: Shapes = [((2, 4, 3), (2, 3, 2)), ((1, 1, 3), (1, 3, 1)), ((3, 3, 3), (3, 3, 3)), ((2, 1, 1), (2, 1, 2))]
    return [
        BatchedCase("mm", torch.mm, products),
        BatchedCase("matmul of stacks", torch.matmul, [*stacked, ((2, 3), (3,)), ((3,), (3,)), ((2, 2, 3), (3, 2))]),
        BatchedCase("bmm", torch.bmm, stacked),
        BatchedCase("addmm", lambda x, w: torch.addmm(w[0], x, w), products),
        BatchedCase("addbmm", lambda x, w: torch.addbmm(x[0, :, :1], x, w), stacked),
        BatchedCase("baddbmm", lambda x, w: torch.baddbmm(x[:, :, :1], x, w), stacked),
        BatchedCase("addmv, addr", lambda x, w: torch.addmv(x[:, 0], x, w[:, 0]).outer(w[0]), products),
        BatchedCase("linear", lambda x, w: F.linear(x, w.T, w[0]), products),
        BatchedCase("mv, dot, outer", lambda x, w: torch.outer(x.mv(w[:, 0]), w[0]) * w[:, 0].dot(x[0]), products),
        BatchedCase("vdot", lambda x, w: torch.vdot(x.flatten(), x.flatten().sin()) * w, products),
        BatchedCase("einsum", lambda x, w: torch.einsum("bij,bjk->kbi", x, w), stacked),
        BatchedCase("tensordot", lambda x, w: torch.tensordot(x, w, dims=1), products),
        BatchedCase("kron", torch.kron, products),
        BatchedCase(
            "bilinear",
            F.bilinear,
            [((4, 2), (4, 3), (2, 2, 3), (2,)), ((1, 1), (1, 1), (1, 1, 1), (1,)), ((2, 2), (2, 2), (2, 2, 2), (2,))],
        ),
        BatchedCase(
            "attention of plain PyTorch",
            lambda q, k, v: torch.softmax(q @ k.mT / 2, dim=-1).matmul(v),
            [((2, 1, 3, 2), (2, 1, 3, 2), (2, 1, 3, 2)), ((1, 1, 1, 1), (1, 1, 1, 1), (1, 1, 1, 1))],
        ),
    ]


def elementwise() -> list[BatchedCase]:
    single: list[Function] = [
        *(torch.sin, torch.cos, torch.tan, torch.tanh, torch.sinh, torch.cosh, torch.atan, torch.exp, torch.expm1),
        *(torch.sigmoid, torch.erf, torch.abs, torch.neg, torch.square, torch.asinh, torch.sinc, torch.exp2),
        *(F.logsigmoid, F.softplus, F.elu, F.selu, F.celu, F.mish, F.gelu, F.silu, F.relu, F.relu6, F.hardtanh),
        *(F.leaky_relu, F.hardswish, F.softsign, F.tanhshrink, F.softshrink, F.hardshrink),
    ]
    positive: list[Function] = [
        *(torch.log, torch.log1p, torch.log2, torch.log10, torch.sqrt, torch.rsqrt, torch.reciprocal, torch.lgamma),
        torch.digamma,
    ]
    double: list[Function] = [
        *(torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum, torch.atan2, torch.hypot),
        torch.logaddexp,
    ]
    return [
        *(BatchedCase(f.__name__, f, ROWS) for f in single),
        *(BatchedCase(f.__name__, lambda x, f=f: f(x.square() + 0.5), ROWS) for f in positive),
        *(BatchedCase(f.__name__, f, PAIRS) for f in double),
    ]


def powers_and_choices() -> list[BatchedCase]:
    return [
        BatchedCase("pow", lambda x: x.pow(3) + x.square().add(1).pow(-0.5), ROWS),
        BatchedCase("pow of tensors", lambda x, y: (x.square() + 1).pow(y), PAIRS),
        BatchedCase("pow of a number", lambda x: torch.pow(2.0, x), ROWS),
        BatchedCase("where", lambda x, y: torch.where(x.detach() > 0, x * y, y), PAIRS),
        BatchedCase("lerp", lambda x, y: torch.lerp(x, x.square(), 0.3) + torch.lerp(y, y.square(), y), PAIRS),
        BatchedCase("addcmul, addcdiv", lambda x: torch.addcmul(x, x, x.sin()).addcdiv(x, x.square() + 1), ROWS),
        BatchedCase("clamp", lambda x: x.clamp(-0.5, 0.5) * x.clamp(min=-0.7) * x.clamp_max(0.9), ROWS),
        BatchedCase("masked_fill", lambda x: x.masked_fill(x.detach() > 0.4, -0.3).square(), ROWS),
        BatchedCase("prelu", F.prelu, [((3, 2), (2,)), ((1, 1), (1,)), ((2, 2, 2), (2,))]),
        BatchedCase("glu", F.glu, [((3, 4),), ((1, 2),), ((2, 2),)]),
        BatchedCase("threshold", lambda x: F.threshold(x, 0.1, -1.0).square(), ROWS),
        BatchedCase("in place", lambda x: (x * 1.0).mul_(x).add_(x).tanh_(), ROWS),
        BatchedCase("other dtypes", lambda x: x.float().sin().double() * x.sign() * x.floor(), ROWS),
        BatchedCase("complex", lambda x: torch.view_as_real(torch.complex(x, x.sin()).exp()).square(), ROWS),
        BatchedCase("polar", lambda x: torch.polar(x.exp(), x).abs() + torch.polar(x.exp(), x).angle(), ROWS),
        BatchedCase(
            "real pairs",
            lambda x: (torch.view_as_complex(x) * torch.view_as_complex(x.sin()).conj()).real,
            [((3, 2),), ((1, 2),), ((2, 2),)],
        ),
    ]


def reductions() -> list[BatchedCase]:
    functions: dict[str, Function] = {
        "sum": lambda x: x.square().sum(0) * x.sum(-1, keepdim=True) * x.sum(),
        "mean": lambda x: x.square().mean(0) * x.mean(-1, keepdim=True) * x.mean(),
        "var": lambda x: x.var(-1, unbiased=False) + x.var() if x.numel() > 1 else x,
        "std": lambda x: (torch.cat([x, x.sin(), x.cos()], -1)).std(-1) + torch.cat([x, x.sin() + 2]).std(),
        "prod": lambda x: x.prod(-1, keepdim=True) * x.prod(),
        "norm": lambda x: x.norm(dim=-1) + x.norm() + torch.linalg.vector_norm(x, 3) + x.norm(p=1, dim=0).sum(),
        "logsumexp": lambda x: x.logsumexp(-1),
        "amax": lambda x: x.amax(-1) * x.square().amin(0).sum(),
        "max": lambda x: x.max(-1).values * x.square().min(0).values.sum() * x.max() * x.median(),
        "cumulative": lambda x: x.cumsum(0) * x.cumprod(-1) + x.logcumsumexp(0),
        "softmax": lambda x: x.softmax(-1) * x.log_softmax(0),
        "sort": lambda x: x.sort(-1).values * x.topk(1, 0).values * x.kthvalue(1, -1, keepdim=True).values,
        "diag": lambda x: x.reshape(-1, x.shape[-1]).square().diag() * x.sum(),
    }
    return [BatchedCase(name, function, ROWS) for name, function in functions.items()]


def shapes_and_indices() -> list[BatchedCase]:
    functions: dict[str, Function] = {
        "view": lambda x: x.view(-1).square() * x.reshape(-1, 1).flatten(),
        "permute": lambda x: x.permute(*range(x.dim())[::-1]).square() + x.transpose(0, -1).sin().contiguous(),
        "t": lambda x: x.flatten(1).t().square() @ x.flatten(1),
        "expand": lambda x: x.unsqueeze(0).expand(2, *x.shape).square() * x.squeeze(-1).sum(),
        "squeeze": lambda x: x.squeeze().sin().sum() * x.squeeze(0).square() * x[None].squeeze(0),
        "repeat": lambda x: x.repeat(2, *[1] * (x.dim() - 1)).square() + x.tile(2, *[1] * (x.dim() - 1)),
        "repeat_interleave": lambda x: x.repeat_interleave(2, 0).square(),
        "cat": lambda x: torch.cat([x, x.square()], -1) * torch.stack([x, x.sin()]).sum(),
        "split": lambda x: x.split(1, 0)[0].square() * x.chunk(2, -1)[-1] * x.unbind(0)[-1].sum(),
        "slice": lambda x: x[:1].square() * x[..., -1:].sin() * x.narrow(0, 0, 1) * x.select(0, 0).sum(),
        "index": lambda x: x[torch.tensor([0, 0])].square() * x[..., torch.tensor([-1])].sum(),
        "mask": lambda x: x[torch.arange(x.shape[0]) % 2 == 0].square() * x.masked_select(x.detach() < 9).sum(),
        "gather": lambda x: x.gather(0, torch.zeros_like(x, dtype=torch.long)).square(),
        "scatter": lambda x: x.scatter(0, torch.zeros(1, *x.shape[1:], dtype=torch.long), x[:1].sin()).square(),
        "scatter_add": lambda x: x.square().scatter_add(0, torch.zeros_like(x, dtype=torch.long), x.sin()),
        "index_select": lambda x: x.index_select(0, torch.tensor([0, 0])).square(),
        "index_add": lambda x: x.square().index_add(0, torch.zeros(x.shape[0], dtype=torch.long), x.sin()),
        "index_put": lambda x: x.square().index_put((torch.tensor([0]),), x[:1].sin()),
        "index_copy": lambda x: x.square().index_copy(0, torch.tensor([0]), x[:1].sin()),
        "index_fill": lambda x: (
            x.square().index_fill(0, torch.tensor([0]), 0.5).index_fill(0, torch.tensor([0]), x.sum()) + x
        ),
        "assignment": _assigned,
        "views in place": lambda x: (x * 1.5).unsqueeze_(0).transpose_(0, 1).squeeze_(1).square(),
        "pad": lambda x: F.pad(x, (1, 2)).cos() * x.sum(),
        "roll": lambda x: x.roll(1, 0).square() * x.flip(-1),
        "triangles": lambda x: x.flatten(1).tril().square() + x.flatten(1).triu(1).sin() + x.flatten(1),
        "diagonals": lambda x: torch.diag_embed(x).square().diagonal(0, 0, -1) * x.sum(),
        "unfold": lambda x: x.unfold(0, 1, 1).square(),
        "meshgrid": lambda x: torch.cartesian_prod(x.flatten(), x.flatten().sin()).prod(1),
        "embedding": lambda x: F.embedding(torch.tensor([[0, 0], [0, 0]]), x.flatten(1)).square(),
        "take_along": lambda x: (
            torch.take_along_dim(x, x.detach().argsort(-1), -1).square() * x.take(torch.tensor([0]))
        ),
        "movedim": lambda x: x.movedim(0, -1).square() * x.swapaxes(0, -1).sum(),
        "einsum of one": lambda x: torch.einsum("i...,j...->ij...", x, x.sin()),
    }
    return [BatchedCase(name, function, ROWS) for name, function in functions.items()]


def _assigned(x: Tensor) -> Tensor:
    out = x * 1.5
    out[0] = x[-1].square()
    out[..., 0] *= x[..., -1]
    return out


def images() -> list[BatchedCase]:
    functions: dict[str, Function] = {
        "max_pool2d": lambda x: F.max_pool2d(x, 2),
        "avg_pool2d": lambda x: F.avg_pool2d(x, 2),
        "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, 1) + F.adaptive_avg_pool2d(x, (1, 2)).mean(),
        "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, 1),
        "pool1d": lambda x: F.max_pool1d(x[:, :, 0], 2) * F.avg_pool1d(x[:, :, 1], 2),
        "pool3d": lambda x: F.max_pool3d(x, 2) * F.avg_pool3d(x, 2) if x.shape[1] > 1 else x,
        "lp_pool2d": lambda x: F.lp_pool2d(x, 2, 2),
        "nearest": lambda x: F.interpolate(x, scale_factor=2),
        "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        "bicubic": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
        "linear": lambda x: (
            F.interpolate(x[:, :, 0], scale_factor=2, mode="linear") + F.interpolate(x[:, 0], size=2)[0, 0, 0]
        ),
        "pixel_shuffle": lambda x: F.pixel_unshuffle(x, 2).square(),
        "patches": lambda x: F.unfold(x, 2).square(),
        "fold": lambda x: F.fold(F.unfold(x, 2), x.shape[2:], 2),
        "reflection": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect").square(),
        "replication": lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate").square(),
        "circular": lambda x: F.pad(x, (1, 1, 1, 1), mode="circular").square(),
        "fft": lambda x: torch.fft.fft2(x).abs().square() + torch.fft.fft(x).real,
        "real fft": lambda x: torch.fft.irfft(torch.fft.rfft(x) * torch.fft.rfft(x.sin()), n=x.shape[-1]),
    }
    return [BatchedCase(name, function, IMAGES) for name, function in functions.items()]


def matrices() -> list[BatchedCase]:
    square: Shapes = [((3, 3),), ((1, 1),), ((2, 2, 2),), ((1, 3, 3),)]

    def spread(x: Tensor) -> Tensor:
        return x @ x.mT + torch.diag(torch.arange(1.0, x.shape[-1] + 1)).double()

    functions: dict[str, Function] = {
        "inverse": lambda x: torch.linalg.inv(spread(x)),
        "determinant": lambda x: torch.linalg.det(spread(x)) + torch.linalg.slogdet(spread(x))[1],
        "cholesky": lambda x: torch.linalg.cholesky(spread(x)),
        "solve": lambda x: torch.linalg.solve(spread(x), x),
        "triangular": lambda x: torch.linalg.solve_triangular(spread(x).tril(), x, upper=False),
        "eigenvalues": lambda x: torch.linalg.eigvalsh(spread(x)),
        "singular values": lambda x: torch.linalg.svdvals(spread(x)),
        "exponential": lambda x: torch.linalg.matrix_exp(x * 0.1),
        "power": lambda x: torch.linalg.matrix_power(x, 3),
    }
    return [
        *(BatchedCase(name, function, square) for name, function in functions.items()),
        BatchedCase("reflections", torch.linalg.householder_product, [((3, 2), (2,)), ((2, 2), (2,)), ((1, 1), (1,))]),
    ]


def losses() -> list[BatchedCase]:
    scores: Shapes = [((4, 3),), ((1, 3),), ((2, 2),), ((1, 1),), ((3, 3),)]
    functions: dict[str, Function] = {
        "cross_entropy of plain PyTorch": cross_entropy,
        "soft targets": lambda x: F.cross_entropy(x, x.detach().cos().softmax(-1)),
        "smoothed": lambda x: F.cross_entropy(
            x, labels(*x.shape), label_smoothing=0.1, weight=constant(x.shape[1]).abs()
        ),
        "dense cross_entropy": lambda x: F.cross_entropy(x.T[None].square(), labels(x.shape[0], x.shape[1])[None]),
        "dense images": lambda x: F.cross_entropy(x.T[None, :, :, None], labels(*x.shape)[None, :, None]),
        "summed": lambda x: F.nll_loss(x.log_softmax(-1), labels(*x.shape), reduction="none").square(),
        "mse": lambda x: F.mse_loss(x, constant(*x.shape)) + F.mse_loss(x, x.square(), reduction="sum"),
        "l1": lambda x: F.l1_loss(x.square(), constant(*x.shape)),
        "smooth l1": lambda x: F.smooth_l1_loss(x, constant(*x.shape)) + F.huber_loss(x, constant(*x.shape), delta=0.7),
        "binary": lambda x: F.binary_cross_entropy_with_logits(x, constant(*x.shape).sigmoid()),
        "binary of probabilities": lambda x: F.binary_cross_entropy(x.sigmoid(), constant(*x.shape).sigmoid()),
        "kl_div": lambda x: F.kl_div(x.log_softmax(-1), constant(*x.shape).softmax(-1), reduction="batchmean"),
        "margin": lambda x: F.soft_margin_loss(x, constant(*x.shape).sign()),
        "cosine": lambda x: F.cosine_similarity(x, x.sin() + 0.3),
        "poisson": lambda x: F.poisson_nll_loss(x, constant(*x.shape).abs()),
        "gaussian": lambda x: F.gaussian_nll_loss(x, constant(*x.shape), x.exp()),
        "hinge": lambda x: F.relu(1 - x * constant(*x.shape)).square().mean(),
    }
    return [BatchedCase(name, function, scores) for name, function in functions.items()]


def layers() -> list[BatchedCase]:
    return [
        BatchedCase("RNN", recurrent("RNN"), recurrent_shapes(1)),
        BatchedCase("GRU", recurrent("GRU"), recurrent_shapes(3)),
        BatchedCase("LSTM", recurrent("LSTM"), recurrent_shapes(4)),
    ]


def fused() -> list[BatchedCase]:
    """This package's own functions, which go through PyTorch's older vmap by rules of their own."""
    scaled: Shapes = [((4, 3), (3,), (3,)), ((1, 1), (1,), (1,)), ((2, 1, 3), (3,), (3,)), ((3, 3), (3,), (3,))]
    heads: Shapes = [tuple([shape] * 3) for shape in ((2, 2, 3, 4), (1, 1, 1, 1), (1, 2, 3, 3), (3, 3, 3, 3))]
    scores: Shapes = [((4, 3),), ((1, 3),), ((2, 2),), ((1, 1),), ((3, 3),)]
    into: Shapes = [((4, 2), (3, 2)), ((1, 1), (1, 1)), ((1, 3), (2, 3)), ((3, 3), (3, 3)), ((2, 2), (3, 2))]
    return [
        BatchedCase("fused layer_norm", lambda x, w, b: ops.layer_norm(x, w.shape, w, b), scaled),
        BatchedCase("fused rms_norm", lambda x, w, b: ops.rms_norm(x, w.shape, w, 1e-6) * b, scaled),
        BatchedCase("fused gelu", ops.gelu, ROWS),
        BatchedCase("fused silu", ops.silu, ROWS),
        BatchedCase("fused swiglu", ops.swiglu, [((3, 2), (3, 2)), ((1, 1), (1, 1)), ((2, 2), (2, 2))]),
        BatchedCase("fused softmax", lambda x: ops.softmax(x, -1) * ops.softmax(x, 0), ROWS),
        BatchedCase("fused attention", ops.attention, heads),
        BatchedCase("fused causal attention", lambda q, k, v: ops.attention(q, k, v, is_causal=True), heads),
        BatchedCase("fused cross_entropy", lambda x: ops.cross_entropy(x, labels(*x.shape)), scores),
        BatchedCase("fused embedding", lambda x: ops.embedding(torch.tensor([[0, 0]]), x.flatten(1)).square(), ROWS),
        BatchedCase(
            "fused linear_cross_entropy",
            lambda x, w: ops.linear_cross_entropy(x, w, labels(x.shape[0], w.shape[0])),
            into,
        ),
    ]


CASES = [
    *(*convolutions(), *normalisations(), *matrix_products(), *elementwise(), *powers_and_choices(), *reductions()),
    *(*shapes_and_indices(), *images(), *matrices(), *losses(), *layers(), *fused()),
]
