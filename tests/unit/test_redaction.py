"""Secrets do not pass; other text does, untouched."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakepit_trio.observe.redaction import MASK, LineRedactor, Redactor, redact, redact_value

SECRET = "hunter2hunter2"


@pytest.mark.parametrize(
    "text",
    [
        f"password={SECRET}",
        f"PASSWORD: '{SECRET} with spaces'",
        f'{{"api_key": "{SECRET}"}}',
        f"DB_PASSWORD={SECRET} next",
        f"Authorization: Bearer {SECRET}",
        f"postgres://user:{SECRET}@host/db",
        f"token={SECRET}&x=1",
        f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----",
        f"Authorization: Basic {SECRET}",
        *(f"{kind}-{SECRET}" for kind in ("sk", "rk", "pk", "glpat", "xoxb", "xoxp")),
        *(f"{kind}_{SECRET}0123456789" for kind in ("ghp", "gho", "ghu", "ghs", "ghr")),
        f"eyJ{SECRET}.{SECRET}.x",
        *(
            f"{name}={SECRET}"
            for name in ("pwd", "passphrase", "x-api-key-2", "client_secret", "credentials", "cookie")
        ),
    ],
)
def test_secrets_are_taken_out(text: str) -> None:
    clean = redact(f"before {text} after")
    assert SECRET not in clean
    assert MASK in clean
    assert clean.startswith("before")
    assert redact(clean) == clean


@pytest.mark.parametrize("text", ["hello world", "the author passed", "x = 1", "http://host/path", "a basic example"])
def test_other_text_is_left_alone(text: str) -> None:
    assert redact(text) == text


def test_values() -> None:
    found = redact_value({"DB_PASSWORD": SECRET, "rows": [{"token": 5}, b"12345"], "n": 1})
    assert found == {"DB_PASSWORD": MASK, "rows": [{"token": MASK}, "<5 bytes>"], "n": 1}


@given(st.text(max_size=300))
def test_redaction_is_idempotent(text: str) -> None:
    assert redact(redact(text)) == redact(text)


@given(
    st.sampled_from(["a", "-----BEGIN ", 'password="\\', "sk-", "eyJ", "://", "token: ", "bearer "]),
    st.integers(1, 20_000),
)
def test_no_text_takes_long(piece: str, times: int) -> None:
    redact((piece * times)[:60_000])


def test_patterns_of_the_application() -> None:
    redactor = Redactor([r"acct-\d+"])
    assert redactor.text("of acct-12345.") == f"of {MASK}."
    assert redactor.value({"note": ["acct-1", {"acct-2": 1}]}) == {"note": [MASK, {MASK: 1}]}
    assert redact("of acct-12345.") == "of acct-12345."


def test_large_things_are_named_by_their_size() -> None:
    assert redact("a " + "Qk1" * 2000 + " z") == "a <6000 characters> z"
    assert len(redact("word " * 100_000)) < 70_000
    assert redact_value(list(range(5000)))[-1] == "... 4000 more"
    assert redact_value({"x": object()}) == {"x": "<object>"}


def test_a_key_over_many_lines() -> None:
    clean = LineRedactor(redact)
    lines = [
        "before",
        "k = -----BEGIN RSA PRIVATE KEY-----",
        SECRET,
        SECRET,
        "-----END RSA PRIVATE KEY----- after",
        "text",
    ]
    shown = list(map(clean, lines))
    assert shown == ["before", f"k = {MASK}", MASK, MASK, f"{MASK} after", "text"]
    endless = [clean("-----BEGIN PRIVATE KEY-----"), *(clean(f"line {n}") for n in range(300))]
    assert endless[1] == MASK
    assert endless[-1] == "line 299"
