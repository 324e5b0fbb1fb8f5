"""Kernels of the compiled extension for CUDA devices, one family per module.

Everything stays on the device, and nothing waits for it but the quadrature at the end of a job.
"""
