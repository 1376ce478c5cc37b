"""Captions -> tokens (interim: trained vocabularies)."""

from __future__ import annotations

import html
import os
from collections.abc import Iterator

import ftfy
import numpy as np
import regex
import tokenizers as hf

SOS, EOS = "<|startoftext|>", "<|endoftext|>"
PATTERN = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def clean(text: str) -> str:
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return regex.sub(r"\s+", " ", text).strip().lower()


class Tokenizer:
    def __init__(self, tokenizer: hf.Tokenizer):
        self._hf = tokenizer
        self.vocab_size = tokenizer.get_vocab_size()
        self.sos_id, self.eos_id = tokenizer.token_to_id(SOS), tokenizer.token_to_id(EOS)

    @classmethod
    def train(cls, texts: Iterator[str], vocab_size: int) -> Tokenizer:
        tok = hf.Tokenizer(hf.models.BPE(end_of_word_suffix="</w>"))
        tok.pre_tokenizer = hf.pre_tokenizers.Sequence(
            [
                hf.pre_tokenizers.Split(hf.Regex(PATTERN), behavior="removed", invert=True),
                hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        trainer = hf.trainers.BpeTrainer(
            vocab_size=vocab_size - 2,
            initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
            end_of_word_suffix="</w>",
            show_progress=False,
        )
        tok.train_from_iterator((clean(t) for t in texts), trainer)
        tok.add_special_tokens([SOS, EOS])
        return cls(tok)

    def __call__(self, texts: list[str], context_length: int) -> np.ndarray:
        out = np.zeros((len(texts), context_length), np.int32)
        for row, enc in enumerate(self._hf.encode_batch([clean(t) for t in texts], add_special_tokens=False)):
            ids = [self.sos_id, *enc.ids[: context_length - 2], self.eos_id]
            out[row, : len(ids)] = ids
        return out

    def save(self, directory: str) -> None:
        self._hf.save(os.path.join(directory, "tokenizer.json"))

    @classmethod
    def load(cls, directory: str) -> Tokenizer:
        return cls(hf.Tokenizer.from_file(os.path.join(directory, "tokenizer.json")))
