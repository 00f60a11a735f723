"""The log of decisions: on the disk before anybody is answered, and whole whatever happens."""

import errno
import json
import os

import pytest

from clfew.errors import UserError
from clfew.labelling import log as module
from clfew.labelling.log import LOG, DecisionLog

NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def opened(tmp_path):
    """opened() opens the log, as a new process does after the last one."""
    logs = []

    def reopen():
        logs.append(DecisionLog(tmp_path / LOG))
        return logs[-1]

    yield reopen
    for each in logs:
        each.close()


def skips(log, count=1):
    return [log.append({"do": "skip", "image": f"{i}.jpg"}) for i in range(count)]


def lines(log):
    return [json.loads(line) for line in log.path.read_bytes().splitlines()]


def test_an_event_is_synced_before_append_returns(opened, monkeypatch):
    log, synced, fsync = opened(), [], os.fsync

    def watched(descriptor):
        fsync(descriptor)
        synced.append((os.fstat(descriptor).st_ino, log.path.read_bytes()))

    monkeypatch.setattr(os, "fsync", watched)
    for number in range(1, 4):
        event = skips(log)[0]
        assert event["n"] == number and len(synced) == number
        inode, content = synced[-1]
        assert inode == log.path.stat().st_ino
        assert json.loads(content.splitlines()[-1]) == event


def test_what_was_written_is_read_again(opened):
    events = skips(opened(), 5)
    again = opened()
    assert again.events == events and again.damaged == 0
    assert skips(again)[0]["n"] == 6
    assert [each["n"] for each in lines(again)] == [1, 2, 3, 4, 5, 6]
    assert again.identity == events[0]["at"] and opened().identity == again.identity


def test_a_new_log_is_empty_and_has_no_identity(opened):
    log = opened()
    assert (log.events, log.damaged, log.identity) == ([], 0, "")


@pytest.mark.parametrize("left", range(1, 60, 7))
def test_a_torn_last_line_is_removed(opened, left):
    log = opened()
    events = skips(log, 3)
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + whole.splitlines()[0][:left])
    again = opened()
    assert again.events == events and again.damaged == 0
    assert log.path.read_bytes() == whole
    assert skips(again)[0]["n"] == 4 and len(lines(again)) == 4


def test_a_whole_event_without_its_end_was_never_confirmed(opened):
    log = opened()
    skips(log, 2)
    log.path.write_bytes(log.path.read_bytes()[:-1])
    assert [each["n"] for each in opened().events] == [1]


DAMAGED = (
    b"",
    b"\0" * 40,
    b"\xff\xfe",
    b"{",
    b"[]",
    b"7",
    b"null",
    b'"skip"',
    b'{"do":"skip","image":"a"}',
    b'{"n":true,"do":"skip"}',
    b'{"n":"3","do":"skip"}',
    b'{"n":3.0,"do":"skip"}',
    b'{"n":0,"do":"skip"}',
    b'{"n":-1,"do":"skip"}',
    b'{"n":3}',
    b'{"n":5,"do":"label"}',
    b'{"n":5,"do":"label","image":"a","class":"deer"}',
    b'{"n":5,"do":"page","class":1,"labels":[],"wrong":[]}',
    b'{"n":5,"do":"undo"}',
    b'{"n":5,"do":"listed","rows":3}',
    b'{"n":3,"do":7}',
    b'{"n":' + b"9" * 10_000 + b',"do":"skip"}',
    b'{"n":3,"do":"skip","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
)


@pytest.mark.parametrize("line", DAMAGED)
def test_a_damaged_line_is_passed_over_and_counted(opened, line):
    log = opened()
    events = skips(log, 4)
    rows = log.path.read_bytes().splitlines()
    damaged = b"\n".join([*rows[:2], line, *rows[2:], b""])
    log.path.write_bytes(damaged)
    again = opened()
    assert again.events == events and again.damaged == 1
    assert log.path.read_bytes() == damaged, "what cannot be read stays"
    assert skips(again)[0]["n"] == 5 and opened().damaged == 1


def test_numbers_go_on_from_the_largest(opened):
    log = opened()
    rows = ['{"n":9,"do":"skip","image":"a"}', "damaged", '{"n":4,"do":"skip","image":"b"}', ""]
    log.path.write_text("\n".join(rows))
    again = opened()
    assert [each["n"] for each in again.events] == [9, 4] and again.damaged == 1
    assert [each["n"] for each in skips(again, 2)] == [10, 11]


def part_then_full(monkeypatch, part):
    """The disk takes so many bytes and then no more, as a full one does."""
    write, left = os.write, [part]

    def limited(descriptor, content):
        if not left[0]:
            raise NO_SPACE
        count = write(descriptor, content[: left[0]])
        left[0] -= count
        return count

    monkeypatch.setattr(module.os, "write", limited)


@pytest.mark.parametrize("part", [0, 1, 20, 50])
def test_a_full_disk_leaves_the_log_as_it_was(opened, monkeypatch, part):
    log = opened()
    events = skips(log, 2)
    before = log.path.read_bytes()
    with monkeypatch.context() as faults:
        part_then_full(faults, part)
        with pytest.raises(UserError, match=r"cannot be written .*No space") as refused:
            skips(log)
    assert "safe" in refused.value.hint
    assert log.path.read_bytes() == before and log.events == events
    assert opened().events == events
    more = skips(log, 2)
    assert [each["n"] for each in more] == [3, 4] and lines(log) == events + more


def test_an_event_that_could_not_be_synced_is_taken_back(opened, monkeypatch):
    log = opened()
    events = skips(log, 2)
    with monkeypatch.context() as faults:
        faults.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(NO_SPACE))
        with pytest.raises(UserError):
            skips(log)
    assert lines(log) == events == log.events
    assert skips(log)[0]["n"] == 3 and [each["n"] for each in lines(log)] == [1, 2, 3]


def test_where_nothing_can_be_taken_back_the_next_event_is_written_over_it(opened, monkeypatch):
    log = opened()
    events = skips(log, 2)
    with monkeypatch.context() as faults:
        part_then_full(faults, 30)
        faults.setattr(module.os, "ftruncate", lambda *_: (_ for _ in ()).throw(NO_SPACE))
        with pytest.raises(UserError):
            log.append({"do": "skip", "image": "x" * 200})
    assert len(log.path.read_bytes().splitlines()) == 3
    events += skips(log)
    again = opened()
    assert again.events == events and again.damaged == 0


def test_writes_of_a_few_bytes_make_whole_lines(opened, monkeypatch):
    write = os.write
    monkeypatch.setattr(module.os, "write", lambda descriptor, content: write(descriptor, content[:3]))
    log = opened()
    events = skips(log, 3)
    assert len(events) == 3 and lines(log) == events


NAMES = ("\udcff.jpg", "a\nb", 'say "x"', "a\\b", "\0", "\u2028", "é", "🦊", "</script>", "\ud83d", " ")


@pytest.mark.parametrize("name", NAMES)
def test_any_name_comes_back_as_it_was(opened, name):
    event = opened().append({"do": "label", "image": name, "class": 1, "name": name})
    again = opened()
    assert again.events == [event] and again.damaged == 0
    assert again.events[0]["image"] == name
    assert again.path.read_bytes().count(b"\n") == 1


def test_a_log_that_cannot_be_opened_is_an_error_with_a_hint(tmp_path):
    (tmp_path / LOG).mkdir()
    with pytest.raises(UserError, match="cannot be opened") as refused:
        DecisionLog(tmp_path / LOG)
    assert refused.value.hint
