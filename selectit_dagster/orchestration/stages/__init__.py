"""The pipeline's inside: what a stage is, and how each stage is built from the experiment."""
