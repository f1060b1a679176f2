"""The messages of the Common Index File Format, described to protobuf at run time: there is no generated code.

Source: Lin et al. 2020, "Supporting Interoperability Between Open-Source Search Engines with the Common Index File
Format" (arXiv 2003.08276). A file is one `Header`, then its number of `PostingsList` and its number of `DocRecord`,
each with its length in front.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from runtime.errors import NotFoundError

PACKAGE = "io.osirrc.ciff"

# name of the field, its kind; numbers count from 1
MESSAGES = {
    "Header": [
        ("version", "int32"),
        ("num_postings_lists", "int32"),
        ("num_docs", "int32"),
        ("total_postings_lists", "int32"),
        ("total_docs", "int32"),
        ("total_terms_in_collection", "int64"),
        ("average_doclength", "double"),
        ("description", "string"),
    ],
    "Posting": [("docid", "int32"), ("tf", "int32")],
    "PostingsList": [("term", "string"), ("df", "int64"), ("cf", "int64"), ("postings", "Posting")],
    "DocRecord": [("docid", "int32"), ("collection_docid", "string"), ("doclength", "int32")],
}


class CiffMessages(NamedTuple):
    """The message classes. `docid` of a posting is the difference to the one before, for the first the id itself."""

    header: Any
    postings_list: Any
    doc_record: Any


@cache
def ciff_messages() -> CiffMessages:
    """The message classes, made once.

    Raises:
        NotFoundError: protobuf is not installed.
    """
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError:
        raise NotFoundError(
            "CIFF needs protobuf, which is not installed; run: pip install 'lexpert[interop]'"
        ) from None
    file = descriptor_pb2.FileDescriptorProto(name="lexpert_ciff.proto", package=PACKAGE, syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields, start=1):
            if kind in MESSAGES:
                message.field.add(
                    name=field, number=number, label=kinds.LABEL_REPEATED, type=kinds.TYPE_MESSAGE,
                    type_name=f".{PACKAGE}.{kind}",
                )  # fmt: skip
            else:
                type_ = kinds.Type.Value(f"TYPE_{kind.upper()}")
                message.field.add(name=field, number=number, label=kinds.LABEL_OPTIONAL, type=type_)
    # A pool of its own: another library in the process may have described the same names.
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    header, postings_list, doc_record = (
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))
        for name in ("Header", "PostingsList", "DocRecord")
    )
    return CiffMessages(header, postings_list, doc_record)
