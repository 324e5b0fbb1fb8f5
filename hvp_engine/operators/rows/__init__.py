"""The rows of a loss (tokens, samples, elements of a regression): their losses, and targets drawn for them."""
