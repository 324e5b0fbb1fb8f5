"""Storage of Lanczos vectors: all of them, or a window of two."""

from __future__ import annotations

import torch
from torch import Tensor

_WINDOW = 2  # the three-term recurrence looks back at the last two vectors


class Basis:
    """Lanczos vectors of one block's streams.

    ``store`` holds every vector for reorthogonalisation (absent without it). Where the store rounds to bfloat16 or is
    absent, ``window`` holds the last two vectors unrounded: the recurrence coefficients come from those.
    """

    def __init__(
        self,
        streams: int,
        steps: int,
        numel: int,
        dtype: torch.dtype,
        store_dtype: torch.dtype | None,
        device: torch.device,
    ) -> None:
        """Allocate.

        Args:
            streams: Number of streams.
            steps: Vectors per stream.
            numel: Length of a vector.
            dtype: Working dtype.
            store_dtype: Dtype of the full basis; None keeps the window only.
            device: Where the vectors live.
        """
        self.store = (
            None if store_dtype is None else torch.empty(streams, steps, numel, dtype=store_dtype, device=device)
        )
        exact = store_dtype == dtype
        self.window = None if exact else torch.empty(streams, min(_WINDOW, steps), numel, dtype=dtype, device=device)

    @staticmethod
    def bytes_per_stream(steps: int, numel: int, dtype: torch.dtype, store_dtype: torch.dtype | None) -> int:
        """Bytes that one stream takes."""
        stored = 0 if store_dtype is None else steps * store_dtype.itemsize
        window = 0 if store_dtype == dtype else min(_WINDOW, steps) * dtype.itemsize
        return (stored + window) * numel

    def rows(self, position: int, stream: int) -> tuple[Tensor | None, Tensor | None]:
        """Where vector number ``position`` of a stream goes: its row of the store and its row of the window."""
        store = None if self.store is None else self.store[stream, position]
        return store, None if self.window is None else self.window[stream, position % _WINDOW]

    def put(self, position: int, stream: int, vector: Tensor) -> None:
        """Store vector number ``position`` of a stream."""
        for row in self.rows(position, stream):
            if row is not None:
                row.copy_(vector)

    def get(self, position: int) -> Tensor:
        """The newest or second newest vectors, unrounded: (streams, numel)."""
        if self.window is not None:
            return self.window[:, position % _WINDOW]
        assert self.store is not None  # one of the two always exists
        return self.store[:, position]

    def orthogonality(self, stream: int, count: int) -> float:
        """Spectral norm of Q'Q - I over the first ``count`` stored vectors of a stream, accumulated in float64."""
        if self.store is None:
            raise ValueError("without a stored basis there is nothing to check")
        gram = torch.zeros(count, count, dtype=torch.float64, device=self.store.device)
        for piece in torch.split(self.store[stream, :count], 1 << 16, dim=1):
            wide = piece.double()
            gram += wide @ wide.T
        identity = torch.eye(count, dtype=torch.float64, device=gram.device)
        return float(torch.linalg.matrix_norm(gram - identity, 2))
