"""Removes secrets from text and values before they reach logs, events, errors or status pages.

By name: the values of names such as password, token or api_key. By pattern: bearer and basic credentials, URLs with
credentials, well-known key formats, JSON Web Tokens, private-key blocks, and the application's own patterns. Long text
is truncated, and a long run without a space (an encoded blob) is replaced by its size.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

__all__ = ["MASK", "LineRedactor", "Redactor", "redact", "redact_value"]

MASK = "[redacted]"
#: The largest number of characters kept of one text.
LONGEST = 64 * 1024
_DEEPEST = 20
#: The largest number of lines of a private key.
_LONGEST_KEY = 200
_KEY_BEGIN = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----")
_KEY_END = re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY-----")
_HARMLESS = (bool, int, float, complex, date, time, timedelta, Decimal, UUID)
#: The largest number of items shown of one collection.
_MOST = 1000
#: A longer run of characters without a space is not text for people.
_LONGEST_RUN = 4096
_BLOB = re.compile(rf"[^\s\[\]]{{{_LONGEST_RUN},}}")

_NAME = (
    r"(?:pass(?:word|wd|phrase)?|pwd|secret|token|api[_-]?key|apikey|access[_-]?key|private[_-]?key|auth(?:orization)?"
    r"|credentials?|cookie|session[_-]?key|client[_-]?secret|signature)"
)
# A secret name may be part of a longer name: DB_PASSWORD, x-api-key-2.
_SECRET_NAME = re.compile(rf"(?:^|[^a-z]){_NAME}s?(?:$|[^a-z])|{_NAME}$", re.IGNORECASE)

#: The pattern of each secret, after words (in lower case) of which at least one is in every match. Most text contains
#: none of them, and the search for a word costs a hundredth of a pattern.
_PATTERNS: tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...] = (
    (
        ("-----begin",),
        re.compile(
            r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY-----|\Z)", re.DOTALL
        ),
        MASK,
    ),
    (("bearer",), re.compile(r"\b(bearer)(\s{1,8})[A-Za-z0-9._~+/=-]{6,}", re.IGNORECASE), rf"\1\2{MASK}"),
    (
        ("basic",),
        re.compile(r"\b(authorization[\"']?\s{0,4}[:=]\s{0,4}[\"']?basic)(\s{1,8})[A-Za-z0-9+/=]{4,}", re.IGNORECASE),
        rf"\1\2{MASK}",
    ),
    (
        ("://",),
        re.compile(r"\b([a-z][a-z0-9+.-]{0,30}://)[^/\s:@\"']{0,256}:[^/\s@\"']{1,256}@", re.IGNORECASE),
        rf"\1{MASK}@",
    ),
    (("eyj",), re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*"), MASK),
    (("sk-", "rk-", "pk-"), re.compile(r"\b(?:sk|rk|pk)-[A-Za-z0-9_-]{12,}"), MASK),
    (("ghp_", "gho_", "ghu_", "ghr_", "ghs_"), re.compile(r"\bgh[pousr]_[A-Za-z0-9]{16,}"), MASK),
    (("glpat-",), re.compile(r"\bglpat-[A-Za-z0-9_-]{12,}"), MASK),
    (("xox",), re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}"), MASK),
    (("akia", "asia"), re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}"), MASK),
    (("aiza",), re.compile(r"\bAIza[A-Za-z0-9_-]{20,}"), MASK),
    (
        ("pass", "pwd", "secret", "token", "key", "auth", "credential", "cookie", "signature"),
        # name=value, "name": "value", name: value; the name may be the end of a longer name, or have a suffix.
        re.compile(
            rf"({_NAME}s?(?:[_-][A-Za-z0-9]{{1,20}})?[\"']?\s{{0,4}}(?:=|:|=>)\s{{0,4}})"
            rf"(?!\[redacted\])(?:\"(?:[^\"\\]|\\.){{1,4096}}\"|'(?:[^'\\]|\\.){{1,4096}}'|(?!bearer|basic)[^\s\"',;&)}}\]]{{1,4096}})",
            re.IGNORECASE,
        ),
        rf"\1{MASK}",
    ),
)


class Redactor:
    """Removes well-known secrets and all matches of the given patterns.

    Args:
        patterns: Regular expressions; every match is masked.
    """

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        self._extra = tuple(re.compile(pattern) for pattern in patterns)

    def __repr__(self) -> str:
        return f"<Redactor patterns={len(self._extra)}>"

    def text(self, text: str) -> str:
        """Return text without secrets, truncated. Idempotent; except for extra patterns, linear in the text's length."""
        for pattern in self._extra:
            text = pattern.sub(MASK, text)
        if len(text) > LONGEST:
            text = f"{text[:LONGEST]}[... {len(text) - LONGEST} characters left out ...]"
        folded = text.casefold()
        for words, pattern, replacement in _PATTERNS:
            for word in words:
                if word in folded:
                    text = pattern.sub(replacement, text)
                    break
        if len(text) > _LONGEST_RUN:
            text = _BLOB.sub(lambda found: f"<{len(found[0])} characters>", text)
        return text

    def value(self, value: Any, depth: int = 0) -> Any:
        """Return a value without secrets: maps by the names of their keys, text by pattern, binary values replaced by
        their size.

        A value that is not plain is replaced by the name of its class.
        """
        if value is None or isinstance(value, _HARMLESS):
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, bytes | bytearray | memoryview):
            return f"<{len(value)} bytes>"
        if depth > _DEEPEST:
            return "..."
        if isinstance(value, Mapping):
            return {
                self.text(key) if isinstance(key, str) else key: MASK
                if isinstance(key, str) and is_secret_name(key) and item is not None
                else self.value(item, depth + 1)
                for key, item in itertools.islice(value.items(), _MOST)
            }
        if isinstance(value, list | tuple | set | frozenset):
            items = [self.value(item, depth + 1) for item in itertools.islice(value, _MOST)]
            if len(value) > _MOST:
                items.append(f"... {len(value) - _MOST} more")
            return type(value)(items) if type(value) in (list, tuple, set, frozenset) else items
        return f"<{type(value).__name__}>"


def is_secret_name(name: str) -> bool:
    """Return whether the value of this name is secret."""
    return _SECRET_NAME.search(name) is not None


class LineRedactor:
    """Removes secrets from text that arrives line by line; a private key is one secret over many lines.

    Args:
        redact: Removes secrets from one line.
    """

    def __init__(self, redact: Callable[[str], str]) -> None:
        self._redact = redact
        # The largest number of further lines of a begun key.
        self._inside = 0

    def __call__(self, line: str) -> str:
        """Return the line without secrets."""
        if self._inside:
            self._inside -= 1
            end = _KEY_END.search(line)
            if end is None:
                return MASK
            self._inside = 0
            line = f"{MASK}{line[end.end() :]}"
        begins = [found.end() for found in _KEY_BEGIN.finditer(line)]
        if begins and _KEY_END.search(line, begins[-1]) is None:
            self._inside = _LONGEST_KEY
        return self._redact(line)


_plain = Redactor()
#: Removes well-known secrets from text.
redact: Callable[[str], str] = _plain.text
redact_value: Callable[[Any], Any] = _plain.value
