"""Positions as text: what goes in comes out, equal vectors look equal, and anything else is refused."""

from __future__ import annotations

import base64

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicated_sqlite_agent.health import tokens

NUMBERS = st.integers(min_value=1, max_value=2**63 - 1)


def token_of(value: object) -> str:
    """Any value packed as a token is."""
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(value)).rstrip(b"=").decode()


@given(st.dictionaries(NUMBERS, NUMBERS))
def test_a_token_gives_back_its_vector(vector: dict[int, int]) -> None:
    token = tokens.encode(vector)
    assert tokens.decode(token) == vector
    assert not set(token) & set("+/= ")


def test_equal_vectors_have_equal_tokens() -> None:
    assert tokens.encode({1: 10, 2: 20}) == tokens.encode({2: 20, 1: 10})


def test_a_run_without_writes_is_left_out() -> None:
    assert tokens.decode(tokens.encode({1: 10, 2: 0})) == {1: 10}


def test_a_token_is_base64url_of_msgpack() -> None:
    assert tokens.encode({0xFFFFFFFFFFFF: 1 << 60}) == token_of({0xFFFFFFFFFFFF: 1 << 60})


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("", id="nothing"),
        pytest.param("hello", id="a word"),
        pytest.param("gQ", id="cut off"),
        pytest.param(tokens.encode({1: 2}) + "AAAA", id="something behind"),
        pytest.param(tokens.encode({1: 2}) + "=", id="padding"),
        pytest.param(" " + tokens.encode({1: 2}), id="a space"),
        pytest.param("gQEC\n", id="a line break"),
        pytest.param("ü" * 8, id="letters that are not ASCII"),
        pytest.param(token_of([1, 2]), id="a list"),
        pytest.param(token_of({"run": 2}), id="a name for a run"),
        pytest.param(token_of({1: "late"}), id="text for a clock"),
        pytest.param(token_of({1: 1.5}), id="a fraction"),
        pytest.param(token_of({-1: 2}), id="a negative run"),
        pytest.param(token_of({1: 2**63}), id="a clock beyond SQLite's integers"),
    ],
)
def test_what_is_no_token_is_refused_with_a_sentence(token: str) -> None:
    with pytest.raises(ValueError, match=r"^the token is damaged; pass it exactly as /v1/position gave it$"):
        tokens.decode(token)
