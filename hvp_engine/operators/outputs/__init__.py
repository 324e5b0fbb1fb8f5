"""The outputs of a model, in which its loss is convex: found on the graph of a loss that was run."""
