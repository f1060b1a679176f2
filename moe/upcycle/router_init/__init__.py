"""How a router starts: a file each."""
