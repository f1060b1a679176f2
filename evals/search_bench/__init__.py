"""``lexpert bench search``: this project and its peers side by side, on the same sparse vectors."""
