"""Re-implementations of the algorithms that other tools use, from their descriptions, for comparison."""
