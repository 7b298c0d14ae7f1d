"""Reads a JSON object piece by piece, so that an annotation file may be larger than memory."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sam3dist.errors import DataError

CHUNK_BYTES = 1 << 18
_SPACE = re.compile(r"[ \t\n\r]*")
_IN_NUMBER = re.compile(r"[-+.0-9eE]*")
_decode_value = json.JSONDecoder().raw_decode


def stream_object(
    path: Path, arrays: set[str], told: Callable[[int], None] | None = None
) -> Iterator[tuple[str, Any, str]]:
    """(key, value, JSON text) of a top-level object, in file order.

    An array named in `arrays` comes as its elements, one by one under the key; any other value comes whole.
    `told` is called with the bytes read so far. Accepts NaN and Infinity, as Python writes them. Raises DataError
    where the file is no such object, is not UTF-8, or ends early.
    """
    with path.open("rb") as file:
        text = _Buffer(path, file, told)
        text.expect("{")
        if text.take_if("}"):
            return
        while True:
            key, _ = text.value()
            if not isinstance(key, str):
                raise text.error("a key is not a string")
            text.expect(":")
            if key in arrays:
                text.expect("[")
                if not text.take_if("]"):
                    yield (key, *text.value())
                    while text.take_if(","):
                        yield (key, *text.value())
                    text.expect("]")
            else:
                yield (key, *text.value())
            if not text.take_if(","):
                text.expect("}")
                return


class _Buffer:
    """The stretch of the file that is being parsed."""

    def __init__(self, path: Path, file: BinaryIO, told: Callable[[int], None] | None) -> None:
        self.path, self.file, self.told = path, file, told
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.at, self.consumed = "", 0, 0
        self.ended = False

    def error(self, what: str) -> DataError:
        return DataError(f"{self.path}: {what} near character {self.consumed + self.at}; give a JSON file in UTF-8.")

    def value(self) -> tuple[Any, str]:
        """The next value and its text."""
        self._skip_space()
        size = CHUNK_BYTES
        while True:
            try:
                value, end = _decode_value(self.text, self.at)
            except json.JSONDecodeError as error:
                # Only a value cut by the end of the buffer is worth reading on: literals and escapes are short.
                cut = error.pos > len(self.text) - 16 or error.msg.startswith("Unterminated string")
                if self.ended or not cut:
                    self.at = error.pos
                    raise self.error(f"not JSON ({error.msg})") from None
            except (RecursionError, ValueError) as error:  # ValueError: an integer of thousands of digits
                raise self.error(f"not JSON that can be read ({error})") from None
            else:
                # A number cut by the end of the buffer reads as a shorter one.
                may_go_on = isinstance(value, int | float) and _IN_NUMBER.fullmatch(self.text, end)
                if self.ended or not may_go_on:
                    text, self.at = self.text[self.at : end], end
                    return value, text
            self._more(size)
            size *= 2  # a value of many chunks is not tried anew for each

    def take_if(self, sign: str) -> bool:
        self._skip_space()
        if self.text[self.at : self.at + 1] != sign:
            return False
        self.at += 1
        return True

    def expect(self, sign: str) -> None:
        if not self.take_if(sign):
            raise self.error("ends in the middle" if self.ended and self.at == len(self.text) else f"no {sign!r}")

    def _skip_space(self) -> None:
        while True:
            match = _SPACE.match(self.text, self.at)
            assert match is not None
            self.at = match.end()
            if self.at < len(self.text) or self.ended:
                return
            self._more(CHUNK_BYTES)

    def _more(self, size: int) -> None:
        chunk = self.file.read(size)
        self.ended = not chunk
        if self.told is not None:
            self.told(self.file.tell())
        try:
            more = self.decoder.decode(chunk, final=self.ended)
        except UnicodeDecodeError as error:
            raise self.error(f"not UTF-8 ({error.reason})") from None
        self.consumed += self.at
        self.text, self.at = self.text[self.at :] + more, 0
