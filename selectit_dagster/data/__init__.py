"""Data in: readers, records, curation."""
