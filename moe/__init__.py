"""Mixture of experts, on the same runtime as retrieval. Empty so far: routers, layers and upcycling come next."""
