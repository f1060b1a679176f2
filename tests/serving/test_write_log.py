"""The files below the lifecycle of an index: torn, damaged, and taken up again."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import FormatError, LexpertError
from serving.indexes.known_answers import KnownAnswer, KnownAnswers
from serving.indexes.record_file import HEADER, RecordFile, read_records
from serving.indexes.write_log import LogClosedError, Write, WriteLog, clear_log, read_log

FRAMES = [[b"one", b"two"], [b""], [b"LXFR in a text", b"x" * 300]]
RECORDS = [record for frame in FRAMES for record in frame]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[int]]:
    """A file of `FRAMES`, and where each of them ends."""
    path = tmp_path_factory.mktemp("log") / "a.log"
    file = RecordFile(path)
    ends = [len(HEADER)]
    first = 1
    for frame in FRAMES:
        file.append(frame, first)
        first += len(frame)
        ends.append(file.bytes)
    file.close()
    assert list(read_records(path, is_last=False)) == list(enumerate(RECORDS, 1))
    return path.read_bytes(), ends


@given(data=st.data())
def test_a_file_cut_anywhere_gives_its_whole_frames(
    tmp_path_factory: pytest.TempPathFactory, whole: tuple[bytes, list[int]], data: st.DataObject
) -> None:
    content, ends = whole
    size = data.draw(st.integers(0, len(content)))
    path = tmp_path_factory.getbasetemp() / "cut.log"
    path.write_bytes(content[:size])
    complete = sum(len(frame) for frame, end in zip(FRAMES, ends[1:], strict=True) if end <= size)
    assert [record for _, record in read_records(path, is_last=True)] == RECORDS[:complete]
    if size not in ends:
        with pytest.raises(FormatError):
            list(read_records(path, is_last=False))


@given(data=st.data())
def test_a_flipped_byte_is_found_unless_it_is_in_a_write_that_may_never_have_been_answered(
    tmp_path_factory: pytest.TempPathFactory, whole: tuple[bytes, list[int]], data: st.DataObject
) -> None:
    content, ends = whole
    place = data.draw(st.integers(0, len(content) - 1))
    path = tmp_path_factory.getbasetemp() / "flipped.log"
    path.write_bytes(
        content[:place] + bytes([content[place] ^ data.draw(st.integers(1, 255))]) + content[place + 1 :]
    )
    if place >= ends[-2]:
        before = sum(map(len, FRAMES[:-1]))
        assert [record for _, record in read_records(path, is_last=True)] == RECORDS[:before]
    else:
        with pytest.raises(FormatError):
            list(read_records(path, is_last=True))
    with pytest.raises(FormatError):
        list(read_records(path, is_last=False))


def test_a_write_that_fails_leaves_nothing_and_the_next_one_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = RecordFile(tmp_path / "a.log")
    file.append([b"one"], 1)

    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr("os.fdatasync", refuse)
        with pytest.raises(LexpertError, match="no space left"):
            file.append([b"lost"], 2)
    file.append([b"two"], 2)
    file.close()
    assert list(read_records(tmp_path / "a.log", is_last=False)) == [(1, b"one"), (2, b"two")]


def test_writes_are_durable_before_they_are_answered_and_dropped_once_committed(tmp_path: Path) -> None:
    accepted: list[bytes] = []
    go_on = threading.Event()

    def accept(writes: Sequence[Write]) -> None:
        accepted.extend(write.record for write in writes)
        go_on.wait(30)

    log = WriteLog(tmp_path / "log", accept)
    writes = [Write(b"%d" % number) for number in range(20)]
    for write in writes[:10]:
        log.append(write)
    first = writes[0].durable.result(30)
    go_on.set()
    assert [write.durable.result(30) for write in writes[:10]] == list(range(1, 11))
    assert first == 1
    log.rotate()
    for write in writes[10:]:
        log.append(write)
    assert writes[-1].durable.result(30) == 20
    expected = [write.record for write in writes]
    assert [record for _, record in read_log(tmp_path / "log")] == expected
    log.drop_through(9)
    assert [record for _, record in read_log(tmp_path / "log")] == expected
    log.drop_through(10)
    assert [record for _, record in read_log(tmp_path / "log")] == expected[10:]
    log.close()
    late = Write(b"late")
    log.append(late)
    with pytest.raises(LogClosedError):
        late.durable.result(0)
    assert accepted == expected
    clear_log(tmp_path / "log")
    assert list(read_log(tmp_path / "log")) == []


def test_answers_are_known_again_by_their_keys(tmp_path: Path) -> None:
    answers = KnownAnswers(tmp_path)
    for number in range(300):  # so many that a second file is begun
        answers.note(KnownAnswer(f"key{number % 50}", f"digest{number}", {"deleted": None}), Write(b""))
        answers.committed(f"key{number % 50}", number)
        answers.save()
    answers.note(KnownAnswer("not committed", "d", {}), Write(b""))
    answers.close()
    assert len(list(tmp_path.iterdir())) == 1
    answers = KnownAnswers(tmp_path)
    found = answers.find("key7")
    assert found is not None
    assert (found[0].digest, found[0].answer, found[1]) == ("digest257", {"deleted": 257}, None)
    assert answers.find("not committed") is None
    answers.note(KnownAnswer("old", "d", {}, at=0.0), None)
    assert answers.find("old") is None


def test_answers_take_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.indexes.known_answers.KEPT_BYTES", 10_000)
    answers = KnownAnswers(tmp_path)
    for number in range(100):
        answers.note(KnownAnswer(f"key{number}", "d", {"errors": ["x" * 100]}), None)
    assert answers.find("key0") is None
    assert answers.find("key99") is not None
