"""Phrases to token ids: the one place that says which ids, how many, and what fills their rows, for every network.

All networks here have CLIP's byte pairs: SAM3, its smaller copies, and the MobileCLIPs of open_clip. Their libraries
differ in what follows a phrase: transformers fills a row with the end token, open_clip with 0, which is also the id of
"!". So padding is never told by an id: what counts is what comes up to the first end token.
"""

from __future__ import annotations

import gzip
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPTokenizer

from sam3dist.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

CLIP_MERGES = 49152 - 256 - 2  # all that CLIP and SAM3 use: 49408 ids in the end
CONTEXT_LENGTH = 32  # tokens of SAM3's text tower


@dataclass(frozen=True)
class TextRule:
    """What rows of ids a network's text tower reads: start, tokens, end, and then anything.

    What follows the end changes no answer: a causal tower never sees it, and a network with a bidirectional one fills
    its rows up to `context` with the end token itself, as it learned to read them.
    """

    context: int
    """Most tokens of a row, start and end among them; longer phrases are cut before their end token."""
    end: int
    """Id that ends a phrase: the last of the vocabulary."""


def text_rule(config: PreTrainedConfig) -> TextRule:
    """The rule of the text tower in a network's configuration."""
    text: Any = config.text_config
    return TextRule(context=int(text.max_position_embeddings), end=int(text.vocab_size) - 1)


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

    Longer phrases are cut and keep their end token; shorter ones are followed by more of it. Padding only to the
    longest costs nothing in accuracy: no tower's answer depends on what follows the first end token (TextRule).
    """
    texts = [clean(phrase) for phrase in phrases]
    rows: Any = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
    end, longest = tokenizer.eos_token_id, max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[end] * (longest - len(row))] for row in rows])
    return ids, valid_tokens(ids, int(end))


def valid_tokens(ids: Tensor, end: int) -> Tensor:
    """1 up to the first end token of each row, that one included, and 0 after it; int64, for any padding."""
    ends = (ids == end).long()
    return (ends.cumsum(1) - ends == 0).long()


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
