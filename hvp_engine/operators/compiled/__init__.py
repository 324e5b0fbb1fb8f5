"""Products as straight lists of calls into fixed memory: recorded once, without what depends on the primal alone."""
