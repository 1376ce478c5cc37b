"""Text -> tokens: CLIP's byte-pair encoding, with the released vocabulary or one trained on the user's own captions.

Shapes: N texts, T positions of the context.
"""

from __future__ import annotations

import functools
import hashlib
import html
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import ftfy
import instant_clip_tokenizer
import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from orchestrator.model.released_vocabulary import END, byte_symbols, released_merges

SOS = "<|startoftext|>"
EOS = "<|endoftext|>"
CONTEXT_LENGTH = 77
_WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
_RELEASED_MERGES_SHA256 = "f61f2adf497e6f5357c347aeb4646fabe82f341e946de5bdec5d2858e41bef4a"


class Tokenizer:
    """CLIP's tokenizer: cleaned and lower-cased text, byte-pair encoded, between [SOS] and [EOS].

    Made by `Tokenizer.clip()`, `Tokenizer.train(...)` or `Tokenizer.load(...)`. [EOS] is the highest id, as the text
    tower needs: it finds it by argmax.

    Attributes
    ----------
    vocab_size : entries of the vocabulary, [SOS] and [EOS] included
    context_length : positions of a row unless a call says otherwise
    sos_id, eos_id : the two highest ids

    Source: Radford et al. 2021, section 2.4, and the `SimpleTokenizer` of its released code.
    """

    def __init__(self, backend: tokenizers.Tokenizer | None, context_length: int = CONTEXT_LENGTH):
        # None: the released vocabulary, whose package encodes ten times as fast; the backend is made when it is needed.
        self._backend = backend
        self._package = _released() if backend is None else None
        self.context_length = context_length
        self.vocab_size: int = 49408 if backend is None else backend.get_vocab_size()
        self.sos_id = self.vocab_size - 2
        self.eos_id = self.vocab_size - 1

    @classmethod
    def clip(cls, context_length: int = CONTEXT_LENGTH) -> Tokenizer:
        """The released vocabulary of 49,408 entries."""
        return cls(None, context_length)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, context_length: int = CONTEXT_LENGTH) -> Tokenizer:
        """A vocabulary trained on texts, laid out as the released one: bytes, bytes that end a word, merges, specials.

        Parameters
        ----------
        texts : the captions, as they come; they are cleaned here
        vocab_size : entries, specials included, at least 514; fewer result if the texts have no more pairs that repeat

        Raises
        ------
        ValueError: vocab_size is below 514
        """
        if vocab_size < 514:
            raise ValueError(f"vocab_size is {vocab_size}; at least 514 are needed: 2 x 256 byte symbols, 2 specials")
        learner = _backend([])
        # Pairs that are as frequent as each other are merged in the order of their symbols' ids. To symbols that end a
        # word the library gives ids as it meets them, in an order that changes from run to run, unless they have one.
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 2,
            min_frequency=2,
            show_progress=False,
            initial_alphabet=byte_symbols(),
            special_tokens=[symbol + END for symbol in byte_symbols()],
            end_of_word_suffix=END,
        )
        learner.train_from_iterator(map(clean, texts), trainer)
        merges = [(first, second) for first, second in json.loads(learner.to_str())["model"]["merges"]]
        return cls(_backend(merges[: vocab_size - 514]), context_length)

    @classmethod
    def load(cls, directory: str | Path) -> Tokenizer:
        """Read what `save` wrote, or the tokenizer.json of a published CLIP model.

        Raises
        ------
        FileNotFoundError, ValueError: no such file, or not CLIP's kind; the message names it and the cure
        """
        path = Path(directory) / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist: name a model directory (as runs/NAME/final), or write one with Tokenizer.save"
            )
        cure = "copy the file again from the run that made it, or write it with Tokenizer.save"
        try:
            model = json.loads(path.read_text(encoding="utf-8"))["model"]
            pairs = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
            merges = [(first, second) for first, second in pairs]
            vocabulary = model["vocab"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no tokenizer of the `tokenizers` library ({error!r}): {cure}") from error
        if vocabulary != _vocabulary(merges):
            raise ValueError(f"{path} is not laid out as CLIP's vocabulary (bytes, merges, {SOS}, {EOS}): {cure}")
        length = CONTEXT_LENGTH
        config = Path(directory) / "tokenizer_config.json"
        if config.is_file():
            try:
                length = int(json.loads(config.read_text(encoding="utf-8")).get("model_max_length", CONTEXT_LENGTH))
            except ValueError as error:
                raise ValueError(f"{config} is not JSON ({error}): {cure}") from error
        return cls(None if _is_released(merges) else _backend(merges), length)

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json and what transformers' CLIPTokenizerFast needs beside it; the folder is made."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        specials = {"bos_token": SOS, "eos_token": EOS, "unk_token": EOS, "pad_token": EOS}
        config = {
            "tokenizer_class": "CLIPTokenizerFast",
            "model_max_length": self.context_length,
            "do_lower_case": True,
            "clean_up_tokenization_spaces": False,
            **specials,
        }
        for name, content in [("tokenizer_config.json", config), ("special_tokens_map.json", specials)]:
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        self._made_backend().save(str(folder / "tokenizer.json"))

    def encode(self, text: str) -> list[int]:
        """One text's ids, [SOS] and [EOS] included, not truncated."""
        return [self.sos_id, *self._encode_clean([clean(text)])[0], self.eos_id]

    def __call__(self, texts: list[str], context_length: int | None = None) -> np.ndarray:
        """Many texts at once.

        Parameters
        ----------
        texts : N strings
        context_length : T, at least 2; None: the tokenizer's own

        Returns
        -------
        int32 (N, T): [SOS] ... [EOS], then zeros; a longer text is cut so that [EOS] stays last

        Raises
        ------
        TypeError: a single string was given; ValueError: context_length is below 2
        """
        length = self.context_length if context_length is None else context_length
        if isinstance(texts, str):
            raise TypeError("a list of texts is needed, not one string; for one text: tokenizer([text])")
        if length < 2:
            raise ValueError(f"context_length is {length}; at least 2 are needed, for [SOS] and [EOS]")
        cleaned = [clean(text) for text in texts]
        if self._package is not None and cleaned and not any(_has_special(text) for text in cleaned):
            return self._package.tokenize_batch(cleaned, length).astype(np.int32)
        tokens = np.zeros((len(cleaned), length), np.int32)
        for row, ids in zip(tokens, self._encode_clean(cleaned), strict=True):
            kept = [self.sos_id, *ids[: length - 2], self.eos_id]
            row[: len(kept)] = kept
        return tokens

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of some ids, without [SOS], what follows [EOS], and the case and spacing that encoding dropped."""
        kept = list(_until(tokens, self.eos_id))
        if self._package is not None:
            return self._package.decode([token for token in kept if token != self.sos_id]).strip()
        return self._made_backend().decode(kept, skip_special_tokens=True).replace(END, " ").strip()

    def _encode_clean(self, cleaned: list[str]) -> list[list[int]]:
        if self._package is not None and not any(_has_special(text) for text in cleaned):
            return [self._package.encode(text) for text in cleaned]
        return [e.ids for e in self._made_backend().encode_batch_fast(cleaned, add_special_tokens=False)]

    def _made_backend(self) -> tokenizers.Tokenizer:
        if self._backend is None:
            self._backend = _backend(list(released_merges()))
        return self._backend

    @property
    def fingerprint(self) -> str:
        """Hex digits that name the vocabulary."""
        return hashlib.sha256(repr(self.__getstate__()).encode()).hexdigest()

    def __getstate__(self) -> tuple[str | None, int]:
        return (None if self._package is not None else self._made_backend().to_str(), self.context_length)

    def __setstate__(self, state: tuple[str | None, int]) -> None:
        definition, context_length = state
        Tokenizer.__init__(
            self, None if definition is None else tokenizers.Tokenizer.from_str(definition), context_length
        )


def clean(text: str) -> str:
    """Mojibake repaired, HTML entities resolved (twice), white space collapsed, lower case.

    Source: `basic_clean` and `whitespace_clean` of CLIP's released code.
    """
    # Most captions are plain: ftfy, which takes most of the time, would leave them as they are.
    if not (text.isascii() and text.isprintable() and "&" not in text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


@functools.cache
def _released() -> instant_clip_tokenizer.Tokenizer:
    """Made once a process: it takes 90 ms, and every reading task unpickles a tokenizer."""
    return instant_clip_tokenizer.Tokenizer()


def _has_special(text: str) -> bool:
    """The released tokenizer takes these words in a caption for the special tokens; its fast package does not."""
    return SOS in text or EOS in text


def _until(tokens: Iterable[int], last: int) -> Iterator[int]:
    for token in tokens:
        if token == last:
            return
        yield int(token)


def _vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    symbols = byte_symbols()
    entries = [*symbols, *(symbol + END for symbol in symbols), *("".join(merge) for merge in merges), SOS, EOS]
    # The trainer may reach one entry by two merges; it is numbered once.
    return {entry: number for number, entry in enumerate(dict.fromkeys(entries))}


def _is_released(merges: list[tuple[str, str]]) -> bool:
    digest = hashlib.sha256("\n".join(map(" ".join, merges)).encode()).hexdigest()
    return digest == _RELEASED_MERGES_SHA256


def _backend(merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    """CLIP's pipeline in the `tokenizers` library, as transformers' CLIPTokenizerFast builds it."""
    vocabulary = _vocabulary(merges)
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix=END,
            fuse_unk=False,
            unk_token=EOS,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(
        (EOS, vocabulary[EOS]), (SOS, vocabulary[SOS]), trim_offsets=False, add_prefix_space=False
    )
    backend.add_special_tokens([SOS, EOS])
    return backend
