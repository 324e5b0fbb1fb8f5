"""Several processes as one: who takes part, what they agree on, sums in a fixed order, and who failed."""
