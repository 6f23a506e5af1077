"""The report of a run: one HTML page made from manifests and stored files."""
