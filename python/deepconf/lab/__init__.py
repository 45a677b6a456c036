"""The laboratory: recorded traces in, what policies would have cost and answered out."""
