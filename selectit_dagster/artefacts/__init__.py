"""Artefacts: a folder with a manifest written last, atomic files, the home, big tables."""
