"""Secrets in text: masked before a text is written or shown, refused in options and on a command line.

A secret is the value of an environment variable that is named like one (`..._KEY`, `..._TOKEN`, ...), that
`keep_secret` names, or that is the password of a proxy; and, in an address, the user and password, the
query, and a part of the path that looks like a key.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import lru_cache

from lore.base.errors import BadInput

MASK = "[masked]"
SHORTEST = 8  # characters of a value that is taken for a secret: a shorter one stands in many harmless words
_NAMED_LIKE_ONE = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
_PROXY = re.compile(r"_proxy$", re.IGNORECASE)
_LIKE_A_KEY = re.compile(
    r"(sk|pk|rk|key|api|token|secret|pat|gh[op]|xox[a-z])[-_]\S{8,}|(?=.*\d)(?=.*[a-z])[\w.~+=-]{24,}",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)(?P<rest>[^\s'\"<>]+)", re.IGNORECASE)
_USER_ALONE = re.compile(r"[^\s/:@='\"]+:[^\s/@'\"]+@(?=[\w\[])")  # user:password@ without a scheme
_HTTP = re.compile(r"https?://([\w.-]+|\[[\da-fA-F:.]+\])(:\d{1,5})?(/[^\s?#]*)?")
_variables: set[str] = set()


def keep_secret(variable: str) -> None:
    """Treat the value of an environment variable as a secret from now on, whatever the variable's name.

    Args:
        variable: Name of the variable, which need not be set yet.
    """
    _variables.add(variable)


def mask_values(text: str) -> str:
    """Put MASK in the place of every secret value in a foreign text, and leave all else as it is.

    Args:
        text: such as the answer of a model, which may echo the key. JSON's escapes hide no secret.

    Returns:
        The text without these values.
    """
    pattern = _pattern(_values())
    return text if pattern is None else pattern.sub(MASK, text)


def mask(text: str) -> str:
    """Put MASK in the place of secret values, and of the secret parts of every address in a text.

    Args:
        text: what is to be shown or written: a message, a command line, a traceback.

    Returns:
        The text without secrets.
    """
    return _USER_ALONE.sub(f"{MASK}@", _ADDRESS.sub(_masked_address, mask_values(text)))


def refuse_secret(key: str, value: str) -> None:
    """Refuse an option that holds a secret: options are written into run folders and shown.

    Args:
        key: name of the option, for the message.
        value: its value, which the message does not repeat.

    Raises:
        BadInput: the value holds a secret.
    """
    if mask(value) != value or re.search(r"://.*@", value, re.DOTALL):
        raise BadInput(
            mask(key),
            "holds a secret (a key, a user or a query in an address), and options are written to disk; "
            "keep it in an environment variable that llm.key_variable names",
        )


def refuse_secret_arguments(arguments: Sequence[str]) -> None:
    """Refuse a command line that holds a secret, before anything reads or writes it.

    Args:
        arguments: of the command, most of them KEY=VALUE.

    Raises:
        BadInput: one of them holds a secret; it names the key.
    """
    for argument in arguments:
        key = re.match(r"[+~]*([\w./@-]+)=", argument)
        refuse_secret(key[1] if key else "command line", argument)


def check_address(key: str, url: str) -> None:
    """Refuse what is no plain address of a server.

    Args:
        key: name of the option, for the message.
        url: its value, which the message does not repeat.

    Raises:
        BadInput: it is not `http(s)://HOST[:PORT][/PATH]`, or it holds a secret.
    """
    refuse_secret(key, url)
    if not _HTTP.fullmatch(url):
        raise BadInput(key, "must be http://HOST[:PORT][/PATH] or https://..., with no user and no query")


def _masked_address(found: re.Match[str]) -> str:
    user, at, place = found["rest"].rpartition("@")
    place, mark, _ = re.split(r"([?#])", place + "?", maxsplit=1)
    path = "/".join(MASK if _LIKE_A_KEY.fullmatch(part) else part for part in place.split("/"))
    has_query = len(found["rest"]) > len(user + at + place)
    return f"{found['scheme']}{MASK + '@' if at else ''}{path}{mark + MASK if has_query else ''}"


def _values() -> frozenset[str]:
    """The secret values that the environment holds now."""
    found = set()
    for name, value in os.environ.items():
        if name in _variables or _NAMED_LIKE_ONE.search(name):
            found.add(value.strip())
        elif _PROXY.search(name) and "@" in value:
            user = value.rpartition("@")[0].rpartition("://")[2]
            found |= {user, user.partition(":")[2]}
    return frozenset(value for value in found if len(value) >= SHORTEST)


@lru_cache(maxsize=8)
def _pattern(values: frozenset[str]) -> re.Pattern[str] | None:
    """Matches each value, also where JSON writes some of its characters as \\uXXXX, or behind a backslash."""
    if not values:
        return None
    longest_first = sorted(values, key=len, reverse=True)
    return re.compile("|".join("".join(map(_character, value)) for value in longest_first))


def _character(c: str) -> str:
    escaped = rf"\\{re.escape(c)}|" if c in '"\\/' else ""
    return rf"(?:{escaped}{re.escape(c)}|\\u(?i:{ord(c):04x}))"
