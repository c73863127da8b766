"""Trained readers that ship with lopt; load one with `lopt.weight_space.predictor.load_predictor(name)`."""
