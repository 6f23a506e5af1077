"""Inference: the one place where a language model runs."""
