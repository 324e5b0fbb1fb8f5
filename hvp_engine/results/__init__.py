"""What a job found: spectra, distances between them, tables and figures."""
