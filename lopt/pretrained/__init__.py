"""Rules that ship with lopt; load one with `lopt.load_rule(name)`."""
