"""Text that dense and sparse models are compared on when no other is given."""

SAMPLE_TEXTS = (
    "Once upon a time, there was a little girl who lived near the sea. Every morning she walked along the beach "
    "and looked for shells, and every evening she told her grandmother about the ones that she had found.",
    "Water boils at 100 degrees Celsius at sea level; at the top of a mountain it boils earlier, because the air "
    "there presses less upon it. How much earlier? About one degree for every 300 metres.",
)
