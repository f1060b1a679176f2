"""Training of sparse encoders: pairs, negatives and teachers in, an encoder folder out."""
