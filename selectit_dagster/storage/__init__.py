"""Artefacts beyond this machine: published to, and fetched from, any place fsspec reaches."""
