"""What a job will cost, before it runs: FLOP, bytes, memory and time, counted on the model itself."""
