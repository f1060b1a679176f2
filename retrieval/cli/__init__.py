"""The command line of retrieval: ``lexpert index``, ``search``, ``encode``, and the data of ``lexpert train``."""

from retrieval.cli.encode import encode
from retrieval.cli.index import index_app
from retrieval.cli.search import search
from retrieval.cli.train_csr import csr
from retrieval.cli.train_expand_queries import expand_queries
from retrieval.cli.train_shrink import shrink
from retrieval.cli.training_data import mine, teach

__all__ = ["csr", "encode", "expand_queries", "index_app", "mine", "search", "shrink", "teach"]
