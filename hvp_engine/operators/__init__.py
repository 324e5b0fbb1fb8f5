"""Curvature operators: products with diagonal blocks of the Hessian and its relatives."""
