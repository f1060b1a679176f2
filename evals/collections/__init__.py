"""Test collections: one file per kind, all giving a `Collection`."""
