"""What a job differentiates: the objective, its data and its arithmetic."""
