"""Networks of ten million parameters under every trainer; `benchmarks/trainers_at_scale.py` runs them."""
