"""Attacks on what the product promises: kills, faults, hostile input, hostile programs.

A developer's tool and no part of the installed package. ``python -m tools.torture`` (``make
torture``) runs the long campaigns and writes ``docs/torture.md`` with the counts that were
really run; the tests under ``tests/torture`` run a short version of each.
"""
