"""Training of sparse encoders: pairs, negatives and teachers in, an encoder folder out."""

from pathlib import Path

DEFAULT_CACHE = Path(".lexpert/training")
"""What models made of texts, in the folder that a command runs in."""
