"""Curvature operators: matrix products with blocks of the Hessian."""
