"""Optimal transport: a problem (costs, marginals), solvers that return a result, and the loss on top."""
