"""The tokenizer against a plain byte-pair encoder written from CLIP's description, and against transformers."""

import functools
import html
import itertools
import json
import pickle
import random
import string
from pathlib import Path

import ftfy
import instant_clip_tokenizer
import numpy as np
import pytest
import regex

from orchestrator.model.released_vocabulary import released_merges
from orchestrator.model.tokenizer import Tokenizer, clean

HARD = [
    "",
    "   ",
    "a photo of a cat",
    "A Photo\tof\n a   CAT.",
    "it's what they'll've said, isn't it? I'm we're I'd IT'S",
    "1234567 3.14 x2y ½ ² Ⅷ ١٢٣",
    "!!!...??? --- ''' \"\" @#$%^*()_+=[]{}|\\;:<>/~`",
    "caf\u00e9 cafe\u0301 na\u00efve \u00fcber stra\u00dfe \u0130stanbul \u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03a3",
    "schÃ¶n â€œquotedâ€\x9d donâ€™t",
    "&lt;b&gt; Tom &amp;amp; Jerry &amp;lt; &eacute;t&eacute; &#128512; &nbsp; R&D AT&T",
    "日本語のテキスト 中文 한국어 ภาษาไทย हिन्दी العربية עברית",
    "😀 👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 ❤️ \U000e0001",
    "zero\u200bwidth non\u00a0breaking em\u2003space line\u2028separator nel\x85x",
    "control \x00\x07\x1b[31mred\x1b[0m\x7f characters \x1c\x1f",
    "ﬁne ﬂow ｆｕｌｌ ｗｉｄｔｈ",
    "\ufffd \ufeffbom lone \ud800 surrogate",
    "<b> &amp;lt; entities twice, where ftfy leaves them alone",
    "<|startoftext|> inside <|ENDOFTEXT|>",
    "http://example.com/a_b-c?d=e&f=g#h #hashtag @user",
    "supercalifragilisticexpialidocious antidisestablishmentarianism aaaaaaaaaaaaaaaaaaaaaaaa",
    "a" * 300,
    "the cat sat on the mat " * 40,
    "𝓯𝓪𝓷𝓬𝔂 ℌ𝔢𝔩𝔩𝔬 ＡＢＣ ǅ",
]
CAPTIONS = ["a red cat on a mat", "a red dog", "two cats and a dog on the grass", "the grass is green, isn't it?"] * 5


class PlainTokenizer:
    """CLIP's SimpleTokenizer, from its description; it shares no code and no vocabulary with the one tested."""

    WORDS = regex.compile(
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE
    )

    def __init__(self, merges: list[tuple[str, str]]):
        visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
        self.symbol = {byte: chr(byte) for byte in visible}
        for byte in range(256):
            self.symbol.setdefault(byte, chr(256 + len(self.symbol) - len(visible)))
        words = [*self.symbol.values()]
        words += [word + "</w>" for word in words] + ["".join(merge) for merge in merges]
        self.ids = {word: number for number, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
        self.ranks = {merge: number for number, merge in enumerate(merges)}

    def encode(self, text: str) -> list[int]:
        text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
        text = regex.sub(r"\s+", " ", text).strip().lower()
        ids = [self.ids["<|startoftext|>"]]
        for word in self.WORDS.findall(text):
            ids += [self.ids[word]] if word in self.ids and word.startswith("<|") else self.merge(word)
        return [*ids, self.ids["<|endoftext|>"]]

    def merge(self, word: str) -> list[int]:
        parts = [self.symbol[byte] for byte in word.encode()]
        parts[-1] += "</w>"
        while True:
            ranked = [(self.ranks[pair], n) for n, pair in enumerate(itertools.pairwise(parts)) if pair in self.ranks]
            if not ranked:
                return [self.ids[part] for part in parts]
            n = min(ranked)[1]
            parts[n : n + 2] = [parts[n] + parts[n + 1]]


@functools.cache
def published_merges() -> list[tuple[str, str]]:
    """The vocabulary's text as the package's binary embeds it: another way to it than the one tested."""
    (binary,) = Path(instant_clip_tokenizer.__file__).parent.glob("*.so")
    data = binary.read_bytes()
    start = data.index(b"#version: 0.2")
    lines = data[start : start + 2_000_000].decode(errors="replace").split("\n")[1 : 49152 - 256 - 2 + 1]
    return [(first, second) for first, second in map(str.split, lines)]


@pytest.fixture(scope="module")
def released() -> Tokenizer:
    return Tokenizer.clip()


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return Tokenizer.train(CAPTIONS, 560)


def test_the_merges_are_the_published_ones():
    assert list(released_merges()) == published_merges()


def test_published_ids(released):
    assert released.encode("a photo of a cat") == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert released.encode("Hello World!") == [49406, 3306, 1002, 256, 49407]
    assert (released.vocab_size, released.sos_id, released.eos_id) == (49408, 49406, 49407)


@pytest.mark.parametrize("text", HARD)
def test_equal_to_a_plain_encoder(released, text):
    want = PlainTokenizer(published_merges()).encode(text)
    assert released.encode(text) == want
    row = released([text], 512)[0]
    assert list(row[: len(want[:511])]) == want[:511]


@pytest.mark.parametrize("text", HARD)
def test_the_saved_pipeline_equals_the_fast_package(released, text):
    ids = released._made_backend().encode(clean(text)).ids
    assert ids == released.encode(text)


def test_trained_equal_to_a_plain_encoder(trained):
    model = json.loads(trained._made_backend().to_str())["model"]
    plain = PlainTokenizer([tuple(merge) for merge in model["merges"]])
    for text in [*HARD, *CAPTIONS]:
        assert trained.encode(text) == plain.encode(text)


def test_a_batch_is_padded_with_zeros_and_cut_before_eos(released, trained):
    for tokenizer in (released, trained):
        tokens = tokenizer(["", "a cat", "cat " * 100, "<|startoftext|> cat"], 8)
        assert (tokens.shape, tokens.dtype) == ((4, 8), np.int32)
        assert tokens[0].tolist() == [tokenizer.sos_id, tokenizer.eos_id, 0, 0, 0, 0, 0, 0]
        assert tokens[2, -1] == tokenizer.eos_id
        assert tokens[2, :-1].tolist() == tokenizer.encode("cat " * 100)[:7]
        assert (tokens.max(axis=1) == tokenizer.eos_id).all()
        assert tokenizer([]).shape == (0, 77)
        assert tokenizer(["a cat"]).shape == (1, 77)


def test_a_batch_equals_its_texts_alone(released):
    np.testing.assert_array_equal(released(HARD), np.concatenate([released([text]) for text in HARD]))


def test_wrong_calls(released):
    with pytest.raises(TypeError, match="list of texts"):
        released("a cat")
    with pytest.raises(ValueError, match="context_length is 1"):
        released(["a cat"], 1)
    with pytest.raises(ValueError, match="at least 514"):
        Tokenizer.train(CAPTIONS, 513)


@pytest.mark.parametrize("text", ["Plain ASCII, Text!", "tab\tand\nline", "R&amp;D", "dels \x7f and \x0b", "caf\u00e9"])
def test_the_short_cut_in_cleaning_changes_nothing(text):
    whole = regex.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(text)))).strip().lower()
    assert clean(text) == whole


def test_trained_vocabulary_layout(trained):
    assert 514 < trained.vocab_size <= 560
    assert (trained.sos_id, trained.eos_id) == (trained.vocab_size - 2, trained.vocab_size - 1)
    assert len(trained.encode("grass cat")) < 2 + len("grass") + len("cat")
    assert trained.decode(trained.encode("A red CAT 😀")) == "a red cat 😀"
    assert trained.encode("a red cat") == Tokenizer.train(CAPTIONS, 560).encode("a red cat")
    assert Tokenizer.train(CAPTIONS, 514).vocab_size == 514
    assert Tokenizer.train([], 600).vocab_size == 514


def test_the_same_captions_train_the_same_vocabulary():
    """Of many pairs as frequent as each other the library itself would take now this one first, now that."""
    letters = random.Random(0)
    words = ["".join(letters.choices(string.ascii_lowercase, k=2 + number % 6)) for number in range(400)]
    captions = [" ".join(letters.choices(words, k=6)) for _ in range(1500)]
    assert len({Tokenizer.train(captions, 900)._made_backend().to_str() for _ in range(6)}) == 1


def test_decode(released):
    assert released.decode(released(["A photo of a CAT"])[0]) == "a photo of a cat"


@pytest.mark.parametrize("name", ["released", "trained"])
def test_saved_loaded_pickled(name, request, tmp_path):
    tokenizer = request.getfixturevalue(name)
    tokenizer.save(tmp_path / "model")
    for again in (Tokenizer.load(tmp_path / "model"), pickle.loads(pickle.dumps(tokenizer))):
        assert (again.vocab_size, again.context_length) == (tokenizer.vocab_size, tokenizer.context_length)
        np.testing.assert_array_equal(again(HARD), tokenizer(HARD))


@pytest.mark.parametrize("name", ["released", "trained"])
def test_transformers_reads_what_was_saved(name, request, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = request.getfixturevalue(name)
    tokenizer.save(tmp_path)
    for kind in (transformers.CLIPTokenizerFast, transformers.AutoTokenizer):
        theirs = kind.from_pretrained(str(tmp_path))
        assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.sos_id, tokenizer.eos_id)
        assert theirs.model_max_length == 77
        for text in HARD:
            assert theirs(clean(text)).input_ids == tokenizer.encode(text), text


def test_context_length_is_kept(tmp_path):
    Tokenizer.train(CAPTIONS, 520, context_length=16).save(tmp_path)
    assert Tokenizer.load(tmp_path)(["a cat"]).shape == (1, 16)


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"model": {"vocab": {"a": 0}, "merges": []}}'])
def test_a_bad_directory_is_named_with_the_cure(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises((FileNotFoundError, ValueError), match=r"tokenizer\.json.*Tokenizer\.save"):
        Tokenizer.load(tmp_path)
