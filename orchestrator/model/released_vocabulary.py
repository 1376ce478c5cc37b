"""CLIP's released byte-pair vocabulary, read out of the instant-clip-tokenizer package.

The package carries the vocabulary inside its binary and shows it only through `decode`. That is enough: a token's id
is its rank, and the merge that made a token is the last step of encoding it with the merges before it.
"""

from __future__ import annotations

import functools
import itertools

import instant_clip_tokenizer

END = "</w>"
_REPLACED = "\ufffd"
# What makes a piece of UTF-8 whole: the bytes that may be missing before it and after it.
_BEFORE = ["", "c3", "e3", "e381", "e0", "ed", "f0", "f09f", "f09f98", "f3", "f3a0", "f3a081"]
_AFTER = [first + "80" * rest for rest in range(3) for first in ("80", "90", "a0", "b0")]


def byte_symbols() -> list[str]:
    """The printable character that stands for each byte, in the order of CLIP's first 256 ids.

    Source: GPT-2's `bytes_to_unicode`, as in Radford et al. 2019.
    """
    return list(_symbol_of_byte().values())


@functools.cache
def _symbol_of_byte() -> dict[int, str]:
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


@functools.cache
def released_merges() -> tuple[tuple[str, str], ...]:
    """The 48,894 merges of the released vocabulary, by rank.

    Raises
    ------
    RuntimeError: the installed package holds another vocabulary
    """
    package = instant_clip_tokenizer.Tokenizer()
    ranks: dict[tuple[str, str], int] = {}
    for token in range(512, package.start_of_text()):
        pair = apply_merges(_symbols(package, token), ranks)
        if len(pair) != 2:
            raise RuntimeError(f"instant-clip-tokenizer: token {token} is no merge of earlier ones: {pair}")
        ranks[pair[0], pair[1]] = len(ranks)
    return tuple(ranks)


def apply_merges(symbols: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding: join the pair of the lowest rank, everywhere, until no pair has a rank."""
    while len(symbols) > 1:
        pair = min(itertools.pairwise(symbols), key=lambda pair: ranks.get(pair, len(ranks)))
        if pair not in ranks:
            break
        joined: list[str] = []
        for symbol in symbols:
            # A symbol that was itself just joined is longer than the pair's first, so it cannot match again.
            if joined and (joined[-1], symbol) == pair:
                joined[-1] += symbol
            else:
                joined.append(symbol)
        symbols = joined
    return symbols


def _symbols(package: instant_clip_tokenizer.Tokenizer, token: int) -> list[str]:
    """A token as the symbols of its bytes; the last carries the end-of-word mark if the token does."""
    shown = package.decode([token])
    content = shown.encode() if _REPLACED not in shown else _bytes_of_a_fragment(package, token)
    ends_word = content.endswith(b" ")
    symbols = [_symbol_of_byte()[byte] for byte in content.removesuffix(b" ")]
    if ends_word:
        symbols[-1] += END
    return symbols


def _bytes_of_a_fragment(package: instant_clip_tokenizer.Tokenizer, token: int) -> bytes:
    """A token that begins or stops inside a character: completed with single bytes until it can be shown."""
    identifier = {byte: number for number, byte in enumerate(_symbol_of_byte())}
    for before in _BEFORE:
        for after in ["", *_AFTER]:
            head, tail = bytes.fromhex(before), bytes.fromhex(after)
            shown = package.decode([*(identifier[b] for b in head), token, *(identifier[b] for b in tail)])
            if _REPLACED not in shown:
                return shown.encode()[len(head) :].removesuffix(tail)
    return package.decode([token]).encode()  # the replacement character itself, which the vocabulary also holds
