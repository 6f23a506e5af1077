"""Comparison of the arms: paired statistics, tables, plots."""
