"""Triton kernels for GPUs of compute capability 8.0 and newer, one family per module.

Only the dispatchers import these modules, and only for tensors on such a device: the package itself must import where
Triton is not installed.
"""
