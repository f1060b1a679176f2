"""Architectures with experts, as transformers and others load them: a file each."""
