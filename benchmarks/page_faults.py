"""Times second backwards of a small causal transformer under given allocator settings, one process each.

python benchmarks/page_faults.py            runs every setting in a process of its own, alternating
python benchmarks/page_faults.py 512 1024   runs one: mmap and trim threshold in MiB (0 0: the defaults)
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time

SETTINGS = [("0", "0"), ("32", "64"), ("128", "256"), ("256", "512"), ("1024", "1024"), ("2047", "2047")]


def make_loss():
    """Return a two-layer causal transformer of width 384 with a tied head over 50,304 tokens, on 4 x 256 tokens."""
    import torch
    from torch.nn import functional as F

    torch.manual_seed(0)
    torch.set_num_threads(2)
    width, vocabulary, length, heads = 384, 50304, 256, 6
    embedding = torch.nn.Embedding(vocabulary, width)
    layer = {"batch_first": True, "norm_first": True, "dropout": 0.0, "activation": "gelu"}
    blocks = [torch.nn.TransformerEncoderLayer(width, heads, 4 * width, **layer) for _ in range(2)]
    mask = torch.nn.Transformer.generate_square_subsequent_mask(length)
    tokens = torch.randint(vocabulary, (4, length))

    def loss():
        x = embedding(tokens)
        for block in blocks:
            x = block(x, src_mask=mask)
        return F.cross_entropy((x @ embedding.weight.T).flatten(0, 1), tokens.flatten())

    return loss, list(blocks[0].parameters())


def measure(mmap_mib: int, trim_mib: int) -> None:
    """Print per second backward: wall and kernel seconds and page faults; then the peak RSS in GB."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from hvp_engine.kernels.loader import native

    if mmap_mib:
        native.set_malloc_thresholds(min(mmap_mib << 20, (1 << 31) - 1), min(trim_mib << 20, (1 << 31) - 1))
    with sdpa_kernel(SDPBackend.MATH):
        loss, parameters = make_loss()
        gradient = torch.autograd.grad(loss(), parameters, create_graph=True)
        vectors = [torch.randn_like(g) for g in gradient]
        usage, seconds = resource.getrusage(resource.RUSAGE_SELF), []
        for repeat in range(4):
            if repeat == 1:  # the first one grows the heap
                usage = resource.getrusage(resource.RUSAGE_SELF)
            start = time.perf_counter()
            torch.autograd.grad(gradient, parameters, vectors, retain_graph=True)
            seconds.append(time.perf_counter() - start)
    after = resource.getrusage(resource.RUSAGE_SELF)
    faults, system = (after.ru_minflt - usage.ru_minflt) // 3, (after.ru_stime - usage.ru_stime) / 3
    print(f"{statistics.median(seconds[1:]):.3f} {system:.3f} {faults} {after.ru_maxrss / 1e6:.2f}")


def main() -> None:
    """Run one setting, or all of them alternately."""
    if len(sys.argv) == 3:
        measure(int(sys.argv[1]), int(sys.argv[2]))
        return
    for _ in range(2):
        for setting in SETTINGS:
            command = [sys.executable, __file__, *setting]
            done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=True)
            print(
                f"mmap {setting[0]} MiB, trim {setting[1]} MiB: wall s, kernel s, faults, peak GB:",
                done.stdout.strip(),
            )


if __name__ == "__main__":
    main()
