"""``lexpert bench moe``: layers of experts on our execution and on those of transformers, on the same weights."""
