import json
import math
from pathlib import Path

import pytest

from sam3dist.data import json_stream
from sam3dist.data.json_stream import stream_object
from sam3dist.errors import DataError

DOCUMENT = {
    "info": {"year": 2026, "sources": {"a": [1, 2]}},
    "images": [{"id": 1, "name": 'comma, "quote" ] }'}, {"id": 2, "name": "é😀"}, 17, -3.5e-3, None],
    "number": 123456,
    "annotations": [],
    "last": True,
}


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 100000])
@pytest.mark.parametrize("indent", [None, 2])
def test_pieces_are_what_json_would_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, indent: int):
    monkeypatch.setattr(json_stream, "CHUNK_BYTES", chunk)
    path = tmp_path / "a.json"
    path.write_text(
        json.dumps(DOCUMENT, indent=indent, ensure_ascii=chunk % 2 == 0).encode("utf-8", "replace").decode()
    )
    expected = json.loads(path.read_text())
    pieces = list(stream_object(path, {"images", "annotations"}))
    assert [value for key, value, _ in pieces if key == "images"] == expected["images"]
    assert {key: value for key, value, _ in pieces if key != "images"} == {
        key: expected[key] for key in ("info", "number", "last")
    }
    assert all(json.loads(text) == value for _, value, text in pieces)


def test_python_s_nan_is_read(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": [[math.nan, math.inf]]}))
    ((_, value, _),) = stream_object(path, {"images"})
    assert math.isnan(value[0])
    assert math.isinf(value[1])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "ends in the middle"),
        (b"[1]", "no '{'"),
        (b'{"images": [{"id": 1}, {"id"', "not JSON"),
        (b'{"images": [{"id": 1}', "ends in the middle"),
        (b'{"images": [1 2]}', "no ']'"),
        (b'{"images": ["\xff\xfe"]}', "not UTF-8"),
        ('{"images": []}'.encode("utf-16"), "not UTF-8"),
        (b'{"a": ' + b"[" * 200_000, "recursion"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "digits"),
        (b'{"images": [{"id": 1}, oops]' + b" " * 100, "not JSON .* near character 23"),
        (b"{1: 2}", "a key is not a string"),
    ],
)
def test_what_is_no_json_object_is_named(tmp_path: Path, content: bytes, words: str):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words) as error:
        list(stream_object(path, {"images"}))
    assert "bad.json" in str(error.value)
    assert "\n" not in str(error.value)
