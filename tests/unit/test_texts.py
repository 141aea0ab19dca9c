"""Calibration files: what is read, and what is said of a bad one."""

import json
from pathlib import Path

import pytest

from engine_config.build import texts
from engine_config.build.checkpoint import QuantizeError


def test_the_shipped_texts_have_every_kind_and_share_nothing() -> None:
    lines = texts.CALIBRATION.read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    kinds, _ = texts.heldout()

    assert {record["kind"] for record in records} == {*kinds, "chat"}
    assert {*kinds} == {"english", "chinese", "code", "arithmetic"}
    held = {passage for passages in kinds.values() for passage in passages}
    assert held.isdisjoint(record.get("text") for record in records)


def test_without_a_file_the_shipped_text_is_taken_whole() -> None:
    calibration = texts.calibration(None, 32 * 256)

    assert calibration.name == "the text shipped with the project"
    assert len(calibration.sha256) == 64
    assert any(isinstance(passage, list) for passage in calibration.passages)
    lines = texts.CALIBRATION.read_text(encoding="utf-8").splitlines()
    assert len(calibration.passages) == len(lines)


def test_plain_text_is_read_by_paragraph(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("one\nstill one\n\ntwo\n", encoding="utf-8")

    assert texts.calibration(path, 1000).passages == ["one\nstill one", "two\n"]
    assert texts.calibration(path, 1000).name == str(path)


def test_json_lines_hold_texts_and_conversations(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    messages = [{"role": "user", "content": "你好", "name": "left out"}]
    path.write_text(json.dumps({"text": "a"}) + "\n\n" + json.dumps({"messages": messages}))

    passages = texts.calibration(path, 1000).passages

    assert passages == ["a", [{"role": "user", "content": "你好"}]]


def test_of_a_long_file_every_nth_passage_is_taken() -> None:
    passages: list[texts.Passage] = [f"{index:98}" for index in range(100)]

    assert texts.thin(passages, 1000) == passages[::10]
    assert texts.thin(passages, 10**9) == passages


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"text": "a"}\n{"text"', "line 2: not JSON"),
        ('{"text": 3}', 'line 1: neither {"text": "..."} nor'),
        ('{"messages": []}', "line 1: neither"),
        ('{"messages": [{"role": "robot", "content": "a"}]}', "line 1: neither"),
        ('{"messages": [{"role": "user", "content": null}]}', "line 1: neither"),
        ("", "holds no text"),
        (" \n\n ", "holds no text"),
    ],
)
def test_a_bad_calibration_file_is_named_with_its_line(
    tmp_path: Path, content: str, said: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content)

    with pytest.raises(QuantizeError, match=said):
        texts.calibration(path, 1000)


def test_a_calibration_file_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")

    with pytest.raises(QuantizeError, match=r"binary is not UTF-8 text \(byte 0\)"):
        texts.calibration(binary, 1000)
    with pytest.raises(QuantizeError, match=r"absent\.txt: No such file"):
        texts.calibration(tmp_path / "absent.txt", 1000)
