"""Tests of the miniature world."""
