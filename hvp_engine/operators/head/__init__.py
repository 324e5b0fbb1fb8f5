"""A model's linear head: found, its curvature decided on, formed and kept."""
