"""Coverage of error bars on matrices whose spectrum is known; run it as ``python -m benchmarks.coverage``."""
