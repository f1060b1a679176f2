"""``lexpert bench serve``: what it costs to ask a server, beside doing the same work in a process of one's own."""
