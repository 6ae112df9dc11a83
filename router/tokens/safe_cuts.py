"""Where a text may be cut so that the ids of its parts are the ids of the whole.

Two kinds of places are safe. *Before a special token*: tokenizers cut there first and look at each side alone.
*Inside text*, after a letter or digit and before a blank or one of some punctuation marks: in the pre-tokenizers of
`KNOWN_PATTERNS` no word spans that place, none looks across it, and NFC does not compose across it.
What is safe depends on bytes near the place only, so the places of a text are places of every longer text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from indexer.blocks import Tokens

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What the pre-tokenizer `ByteLevel` splits by, where `use_regex` is on."""

_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KNOWN_PATTERNS = {
    GPT2_PATTERN: "gpt-2",
    _CL100K.format(digits=r"\p{N}"): "qwen-2",
    _CL100K.format(digits=r"\p{N}{1,3}"): "llama-3",
}

WINDOW_BYTES = 2048
"""At most one cut per window. Smaller windows: less is tokenized again when a prompt grows, but more blocks."""

LOOK_BYTES = 256
"""Places inside text are looked for in so many bytes of a window: bounds the cost of long texts that have none."""

# Characters that are letters or digits in every Unicode version in use, in UTF-8, with their widths. Combining marks
# are left out: they are no letters.
_LEFT = (
    rb"[0-9A-Za-z]",
    rb"[\xd0\xd1][\x80-\xbf]",  # Cyrillic, U+0400 to U+047F: all letters
    rb"[\xe5-\xe8][\x80-\xbf][\x80-\xbf]",  # CJK ideographs, U+5000 to U+8FFF
    rb"\xe3\x81[\x81-\xbf]",  # Hiragana, U+3041 to U+307F
    rb"\xe3\x82[\x80-\x96\xa1-\xbf]",  # Hiragana to U+3096, Katakana from U+30A1
    rb"\xe3\x83[\x80-\xba\xbc]",  # Katakana to U+30FA, the long-vowel mark
    rb"[\xeb\xec][\x80-\xbf][\x80-\xbf]",  # Hangul syllables, U+B000 to U+CFFF
)
# Blanks and punctuation that begin a word of their own after a letter or digit, in every known pattern. Not the
# apostrophe: patterns with contractions look at it from the left.
_RIGHT = (
    (rb'[ \n.,:;"(){}=\]]', 1),
    (rb"\xe3\x80[\x81\x82]", 3),  # U+3001, U+3002
    (rb"\xef\xbc[\x81\x8c\x9a\x9b\x9f]", 3),  # full-width ! , : ; ?
)


def _inside() -> bytes:
    """The pattern of the places inside text; a match begins at the cut.

    What follows the cut stands first, so that the search can skip to the few bytes that begin it.
    """
    rights = []
    for right, width in _RIGHT:
        # The first test is only quick: it spares runs of blanks the others.
        behind = b"|".join(b"(?<=%s.{%d})" % (left, width) for left in _LEFT)
        rights.append(b"%s(?<=[0-9A-Za-z\x80-\xbf].{%d})(?:%s)" % (right, width, behind))
    return b"|".join(rights)


class Cuts:
    """The safe cuts of one tokenizer's texts."""

    def __init__(self, special: Sequence[str], inside: bool, window_bytes: int = WINDOW_BYTES) -> None:
        """`special`: added tokens that are safe to cut before. `inside`: the pre-tokenizer's pattern is a known one."""
        words = [token.encode() for token in special]
        places = _inside()
        if any(re.search(places, word, re.DOTALL) for word in words):
            inside = False  # such a place may lie inside an added token
        self.inside = inside
        self.window_bytes = window_bytes
        # Two searches: special tokens mostly begin alike, and with a literal beginning there is hardly anything to do.
        patterns = [b"|".join(map(re.escape, words))] if words else []
        self._searches = [re.compile(p, re.DOTALL).search for p in (*patterns, *([places] if inside else []))]
        self._longest = max([3, *map(len, words)])
        self._look = min(window_bytes, LOOK_BYTES) if inside else window_bytes

    def first(self, data: bytes, window: int) -> int:
        """The first safe place in the given window of a UTF-8 text, 0 if there is none. Window 0 has none."""
        if window == 0:
            return 0
        start = window * self.window_bytes
        end = start + self._look
        first = end
        for search in self._searches:
            match = search(data, start, first + self._longest)
            if match is not None:
                first = min(first, match.start())
        return first if first < end else 0

    def ends(self, data: bytes, start: int = 0) -> list[int]:
        """Where the parts of `data[start:]` end, in order; the last is `len(data)`. `start` is 0 or a cut."""
        windows = range(start // self.window_bytes + 1, len(data) // self.window_bytes + 1)
        cuts = [cut for window in windows if (cut := self.first(data, window))]
        return [*cuts, len(data)]


class RawCuts(Cuts):
    """Cuts of token ids (4 bytes each): anywhere, so at every window's start."""

    def __init__(self) -> None:
        super().__init__((), inside=False)

    def first(self, data: bytes, window: int) -> int:
        start = window * self.window_bytes
        return start if start < len(data) else 0

    @staticmethod
    def count(ids: Tokens, nbytes: int) -> int:
        """How many ids so many bytes are."""
        return nbytes // 4
