"""Checkpoints of other programs: a file each."""
