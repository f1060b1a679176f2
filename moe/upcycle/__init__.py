"""Upcycling: a dense checkpoint made sparse, and back."""
