"""How a feed-forward block becomes experts: a file each."""
