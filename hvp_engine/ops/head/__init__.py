"""Linear head and cross-entropy as one operation, and the head's curvature."""
