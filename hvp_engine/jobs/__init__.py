"""Jobs: what a run computes from beginning to end, and how it is kept, resumed and recorded."""
