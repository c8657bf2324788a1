"""Losses that compare the class probabilities of one row at a time."""
