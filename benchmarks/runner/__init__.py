"""What all benchmarks share: a log of runs that is only added to, tuning, and a report made from the log alone."""
