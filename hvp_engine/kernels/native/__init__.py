"""Kernels of the compiled extension for the CPU, one family per module."""
