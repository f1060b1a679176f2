"""An index that another process has just made is there for the next request, whichever replica it reaches."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serving.configuration import ServerConfiguration
from serving.errors import ApiError
from serving.indexes import readers
from serving.indexes.writers import NewIndex
from serving.state import ServerState


def test_an_index_is_looked_for_before_it_is_said_not_to_be_there(
    index_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "LOOK_S", 3600.0)  # by itself it would not be seen in time
    state = ServerState(ServerConfiguration(indexes={"docs": index_folder}, data=tmp_path / "data"))
    state.open()
    try:
        asyncio.run(made_elsewhere(state))
    finally:
        state.close()


async def made_elsewhere(state: ServerState) -> None:
    await state.writing.create("news", NewIndex(encoder="bm25"))
    assert not state.catalogue.has("news")
    assert (await state.index("news")).name == "news"
    await state.writing.set_aliases({"latest": "news"})
    assert (await state.index("latest")).name == "news"
    with pytest.raises(ApiError, match="no index 'nothing'"):
        await state.index("nothing")
