"""Evaluation: benchmarks, one engine for likelihoods and generation, the sandbox."""
