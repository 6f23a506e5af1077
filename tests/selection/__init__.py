"""Tests of ranking and selection."""
