"""Block keys as machine code: XXH3 (64 bits, seeded) of short inputs, bit for bit what the `xxhash` package gives.

Only the inputs that blocks of 5 to 32 tokens make, 17 to 128 bytes; others are left to the package. Imported only where
the compiled way is chosen: it needs numba.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from indexer.blocks import Keys, Tokens

SIZES = range(5, 33)
"""Tokens a block for which `chain` is right."""

_LOW = np.uint64(0xFFFF_FFFF)
_PRIME_1 = np.uint64(0x9E37_79B1_85EB_CA87)
_PRIME_MX = np.uint64(0x1656_6791_9E37_79F9)
# XXH3's default secret, its first 128 bytes as little-endian words.
_SECRET = np.array(
    [
        0xBE4B_A423_396C_FEB8, 0x1CAD_21F7_2C81_017C, 0xDB97_9083_E96D_D4DE, 0x1F67_B3B7_A4A4_4072,
        0x78E5_C0CC_4EE6_79CB, 0x2172_FFCC_7DD0_5A82, 0x8E24_43F7_7446_08B8, 0x4C26_3A81_E690_35E0,
        0xCB00_C391_BB52_283C, 0xA32E_531B_8B65_D088, 0x4EF9_0DA2_9748_6471, 0xD8AC_DEA9_46EF_1938,
        0x3F34_9CE3_3F76_FAA8, 0x1D4F_0BC7_C7BB_DCF9, 0x3159_B4CD_4BE0_518A, 0x6473_78D9_C97E_9FC8,
    ],
    np.uint64,
)  # fmt: skip


@njit
def _folded(a: np.uint64, b: np.uint64) -> np.uint64:
    """The two halves of the 128-bit product, XORed."""
    a_low, a_high, b_low, b_high = a & _LOW, a >> np.uint64(32), b & _LOW, b >> np.uint64(32)
    low, first, second = a_low * b_low, a_high * b_low, a_low * b_high
    middle = (low >> np.uint64(32)) + (first & _LOW) + second
    high = a_high * b_high + (first >> np.uint64(32)) + (middle >> np.uint64(32))
    return (a * b) ^ high


@njit
def _mixed(tokens: Tokens, at: int, word: int, seed: np.uint64) -> np.uint64:
    """Of 16 bytes, from the token `at` on, with the words of the secret from `word` on."""
    low = np.uint64(tokens[at]) | np.uint64(tokens[at + 1]) << np.uint64(32)
    high = np.uint64(tokens[at + 2]) | np.uint64(tokens[at + 3]) << np.uint64(32)
    return _folded(low ^ (_SECRET[word] + seed), high ^ (_SECRET[word + 1] - seed))


@njit
def chain(tokens: Tokens, size: int, parent: np.uint64, keys: Keys) -> None:
    """Fill `keys`, one for each block of `size` tokens; `parent`: the key before the first."""
    key = parent
    for block in range(len(keys)):
        start, end = block * size, (block + 1) * size
        mixed = np.uint64(4 * size) * _PRIME_1
        for pair in range((size - 1) // 8, -1, -1):  # from both ends to the middle, 16 bytes each
            mixed += _mixed(tokens, start + 4 * pair, 4 * pair, key)
            mixed += _mixed(tokens, end - 4 * pair - 4, 4 * pair + 2, key)
        mixed = (mixed ^ mixed >> np.uint64(37)) * _PRIME_MX
        key = mixed ^ mixed >> np.uint64(32)
        keys[block] = key
