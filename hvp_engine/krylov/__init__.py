"""Batched Lanczos over streams, and where its vectors come from and go to."""
