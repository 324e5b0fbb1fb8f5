"""Order of loops, and what fits: micro-batches, kept graphs, passes, waves."""
