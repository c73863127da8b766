"""Tasks of the benchmark `weight_space` that make networks of their own."""
