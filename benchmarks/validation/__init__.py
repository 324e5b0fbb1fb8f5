"""The checks and timings of gpu_validate.py."""
