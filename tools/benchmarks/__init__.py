"""Speed, memory and quality trials; run them all with ``python -m tools.benchmarks``."""
