"""Outer loops: they feed a loss's one definition a few rows at a time, and hold what comes back."""
