"""The command line of retrieval: ``lexpert index``, ``lexpert search`` and ``lexpert encode``."""

from retrieval.cli.encode import encode
from retrieval.cli.index import index_app
from retrieval.cli.search import search

__all__ = ["encode", "index_app", "search"]
