"""Twice-differentiable fused operations, each beside its plain PyTorch reference."""
