"""One file per driver: model, data, one call, one figure, one table, claims that are checked."""
