"""Who may call, and what is never shown; and names that cannot leave their folder."""

import hashlib
import hmac
import pickle

import pytest

from serving import keys as keys_module
from serving.errors import RequestError
from serving.keys import Keys, safe_name

ENVIRONMENT = {"KEY_A": "a-long-key-of-alice-0001", "KEY_B": "b-long-key-of-bob-00002\n", "SHORT": "fifteen-letters"}


@pytest.fixture
def keys() -> Keys:
    return Keys({"alice": "KEY_A", "bob": "KEY_B"}, ENVIRONMENT)


def test_each_key_names_its_client(keys):
    assert keys.check("Bearer a-long-key-of-alice-0001") == "alice"
    assert keys.check("bearer   b-long-key-of-bob-00002 ") == "bob"


def test_without_keys_everybody_may_call():
    assert Keys({}).check(None) == ""
    assert Keys({}).check("Bearer whatever") == ""


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Basic YTpi", "a-long-key-of-alice-0001", "Bearera-long-key-of-alice-0001"],
)
def test_a_missing_or_malformed_key(keys, header):
    with pytest.raises(RequestError, match="Authorization: Bearer <key>") as refusal:
        keys.check(header)
    assert (refusal.value.status, refusal.value.field) == (401, "Authorization")


@pytest.mark.parametrize(
    "key", ["a-long-key-of-alice-0002", "a-long-key-of-alice-000", "a-long-key-of-alice-00011", "é\udc80", "x" * 10_000]
)
def test_a_wrong_key(keys, key):
    with pytest.raises(RequestError) as refusal:
        keys.check(f"Bearer {key}")
    assert refusal.value.status == 403
    assert key not in str(refusal.value)


def test_every_key_is_compared_whichever_fits(keys, monkeypatch):
    compared = []

    def watched(one, other):
        compared.append((one, other))
        return hmac.compare_digest(one, other)

    class Watched:
        compare_digest = staticmethod(watched)

    monkeypatch.setattr(keys_module, "hmac", Watched)
    for key in ("a-long-key-of-alice-0001", "b-long-key-of-bob-00002"):
        compared.clear()
        keys.check(f"Bearer {key}")
        assert [one for one, _ in compared] == [hashlib.sha256(key.encode()).digest()] * 2
        assert len({other for _, other in compared}) == 2


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "the environment variable KEY is not set"),
        ("", "the environment variable KEY is not set"),
        ("fifteen-letters", "the key in KEY has fewer than 16 characters"),
        ("fifteen-letters   ", "the key in KEY has fewer than 16 characters"),
        ("a key that holds spaces", "the key in KEY may hold only ASCII"),
        ("schlüssel-schlüssel", "the key in KEY may hold only ASCII"),
        ("a-long-key-of-alice-0001", "the key in KEY is another client's too"),
    ],
)
def test_a_key_that_cannot_be_used_is_named_by_its_variable(value, message):
    environment = {**ENVIRONMENT, **({} if value is None else {"KEY": value})}
    with pytest.raises(ValueError, match=message) as error:
        Keys({"alice": "KEY_A", "carol": "KEY"}, environment)
    assert "carol" in str(error.value)
    assert not value or value.strip() not in str(error.value)


def test_the_environment_is_read_at_the_start_only(monkeypatch):
    monkeypatch.setenv("KEY_A", ENVIRONMENT["KEY_A"])
    keys = Keys({"alice": "KEY_A"})
    monkeypatch.delenv("KEY_A")
    assert keys.check("Bearer a-long-key-of-alice-0001") == "alice"


def test_no_key_is_shown_or_kept(keys):
    assert repr(keys) == str(keys) == "Keys(alice, bob)"
    for seen in (repr(keys), repr(vars(keys)), repr(pickle.dumps(keys))):
        assert "a-long-key" not in seen and "b-long-key" not in seen


@pytest.mark.parametrize("name", ["a", "7", "Pets-2.v1_b", "a..b", "x" * 64])
def test_names_that_are_safe(name):
    assert safe_name(name, "name") == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "-x",
        "_x",
        "a.",
        "a/b",
        "a\\b",
        "../a",
        "a b",
        "a\n",
        "a\0",
        "é",
        "٣",
        "a%2e",
        "x" * 65,
    ],
)
def test_names_that_are_refused(name):
    with pytest.raises(RequestError, match="1 to 64 of A-Z") as refusal:
        safe_name(name, "classifier.name")
    assert (refusal.value.status, refusal.value.field) == (422, "classifier.name")
