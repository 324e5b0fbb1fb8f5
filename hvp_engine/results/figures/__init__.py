"""The figures of results: densities, distances, eigenvalues, and how they change over training."""
