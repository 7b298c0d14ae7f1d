"""Phrases to token ids, the same ids for teacher and student."""

from __future__ import annotations

import gzip
import html
import re
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import AutoTokenizer, CLIPTokenizer

from sam3dist.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CLIP_MERGES = 49152 - 256 - 2  # all that CLIP and SAM3 use: 49408 ids in the end
CONTEXT_LENGTH = 32  # tokens of SAM3's text tower


def load_tokenizer(dir_or_id: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer saved in a directory, or published under a Hugging Face id.

    Raises CheckpointError when there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(str(dir_or_id), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise CheckpointError(f"{dir_or_id}: no tokenizer could be loaded ({first_line}).") from error


def clip_tokenizer(merges: int | None = None) -> PreTrainedTokenizerBase:
    """CLIP's byte-pair tokenizer, built offline from the merges that open_clip ships.

    `merges` keeps only the first (most frequent) ones; the vocabulary has 512 + merges + 2 ids, and because all
    256 bytes are in it, every phrase still tokenises. None keeps all, which gives SAM3's 49408 ids.
    """
    spec = find_spec("open_clip")  # found, not imported: only its data file is wanted
    if spec is None or spec.origin is None:
        raise CheckpointError(
            "clip_tokenizer needs the merges that open_clip_torch ships; pip install open_clip_torch."
        )
    file = Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")[1 : 1 + CLIP_MERGES]
    pairs: Any = [tuple(line.split()) for line in lines[:merges]]  # typed as strings upstream, used as pairs
    symbols = _byte_symbols()
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *(left + right for left, right in pairs)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=CONTEXT_LENGTH)


def tokenize(
    tokenizer: PreTrainedTokenizerBase, phrases: Sequence[str], max_length: int = CONTEXT_LENGTH
) -> tuple[Tensor, Tensor]:
    """Token ids and their mask, both int64 [P, L], L the longest phrase of the batch but at most `max_length`.

    Longer phrases are cut and keep their end token. Padding only to the longest costs nothing in accuracy: SAM3's
    text tower is causal and everything after it is masked.
    """
    encoded = tokenizer(
        [clean(phrase) for phrase in phrases],
        padding="longest",
        truncation=True,
        max_length=max_length,
        return_tensors="pt",
    )
    return encoded["input_ids"], encoded["attention_mask"]


def clean(phrase: str) -> str:
    """The phrase as CLIP was trained to see it: repaired Unicode, no HTML entities, single spaces, lower case.

    Repairing mojibake needs ftfy; without it only that step is left out, which plain English never notices.
    """
    ftfy = _ftfy()
    if ftfy is not None:
        phrase = ftfy.fix_text(phrase)
    phrase = html.unescape(html.unescape(phrase))  # twice, as CLIP does: scraped captions are escaped twice
    return re.sub(r"\s+", " ", phrase).strip().lower()


@cache
def _ftfy() -> ModuleType | None:
    try:
        import ftfy
    except ImportError:
        return None
    return ftfy


def _byte_symbols() -> list[str]:
    """One printable character for each of the 256 bytes, in the order of CLIP's vocabulary (from GPT-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(rest))]
