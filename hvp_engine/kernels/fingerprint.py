"""Fingerprints of a tensor's content: other bits, another number, at the speed of memory."""

from __future__ import annotations

import functools
import hashlib

import torch
from torch import Tensor, nn

from hvp_engine.kernels import loader
from hvp_engine.system.layouts import dense_parts, kind_of

_PLAIN = frozenset((Tensor, nn.Parameter, nn.Buffer))  # subclasses may keep their content elsewhere
_CHUNK = 1 << 15  # words: products of a chunk stay in the processor's cache
_WORD = 4
_FEW = 1 << 13  # bytes: PyTorch's calls would take longer than to digest them
_MASK = (1 << 64) - 1
_FACTOR = 0x9E3779B97F4A7C15  # odd: every chunk counts, and the order of chunks does


def fingerprint(tensor: Tensor) -> int:
    """Return a number of 64 bits that changes with the content of a tensor, for all but one in 2^63 of random changes.

    Every word of 4 bytes is weighted by an odd number of 8 bytes that belongs to its place, so that no change of one
    word goes unnoticed. The weights are wider than the words: the sum of wide words would lose their highest bits, the
    signs of numbers, two by two.

    Args:
        tensor: Any dtype, layout and device; on a GPU the host waits for the result.
    """
    if kind_of(tensor) is not None:
        return _combined([fingerprint(part) for part in dense_parts(tensor.detach())])
    if loader.missing_reason is None and type(tensor) in _PLAIN and tensor.is_cpu:
        if not tensor.is_contiguous() or tensor.is_neg() or tensor.is_conj():
            tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
        return loader.native.fingerprint(tensor.data_ptr(), tensor.nbytes)
    if tensor.nbytes <= _FEW and tensor.device.type == "cpu" and not tensor.is_complex():
        flat = tensor.detach().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
        return int.from_bytes(hashlib.blake2b(flat.numpy().data, digest_size=8).digest(), "little")
    words, tail = _words(tensor.detach())
    factors = _factors(words.device)
    products = torch.empty(min(_CHUNK, words.numel()), dtype=torch.int64, device=words.device)
    sums = [
        torch.mul(chunk, factors[: chunk.numel()], out=products[: chunk.numel()]).sum()
        for chunk in torch.split(words, _CHUNK)
    ]
    found = [int(tail)] if not sums else [*(int(total) for total in torch.stack(sums).cpu()), int(tail)]
    return _combined([tensor.numel(), *found])


def _words(tensor: Tensor) -> tuple[Tensor, int]:
    """Return a tensor's bytes as int32 words (n,), and its last bytes, fewer than a word, as a number."""
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    flat = tensor.resolve_neg().contiguous().reshape(-1)
    if not flat.numel():
        return torch.empty(0, dtype=torch.int32, device=flat.device), 0
    data = flat.view(torch.uint8)
    whole = data.numel() // _WORD * _WORD
    body, rest = data[:whole], data[whole:]
    if body.storage_offset() % _WORD:  # a view of words must begin at one
        body = body.clone()
    return body.view(torch.int32), int.from_bytes(bytes(int(byte) for byte in rest.cpu()), "little")


@functools.cache
def _factors(device: torch.device) -> Tensor:
    """Return one odd number per place in a chunk (n,), the same in every process."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(-(1 << 62), 1 << 62, (_CHUNK,), generator=generator, dtype=torch.int64, device="cpu")
    return drawn.mul_(2).add_(1).to(device)


def _combined(numbers: list[int]) -> int:
    """Make one number of several, in their order."""
    found = 0
    for number in numbers:
        found = (found * _FACTOR + number) & _MASK
    # The last step mixes: sums of many words that differ in their lowest bits must differ in all.
    return int.from_bytes(hashlib.blake2b(found.to_bytes(8, "little"), digest_size=8).digest(), "little")
