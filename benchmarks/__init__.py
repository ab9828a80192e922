"""Speed, measured against named baselines: one file a subject, listed in `benchmarks.__main__`."""
