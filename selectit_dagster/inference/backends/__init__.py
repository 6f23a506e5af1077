"""Backends: whatever runs a model, one file each behind one narrow protocol."""
