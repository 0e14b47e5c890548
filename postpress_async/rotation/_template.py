"""
Templates: proxies of a gateway whose user name or password differs from account to account.

``customer-{account_id}-cc-{country}-s{try}`` has three placeholders. ``{try}`` is the number of proxies that
the account has already tried in this run. Any other name is a column of the account's row.

A password may contain braces for other reasons. Its placeholders therefore count only if ``{account_id}`` or
``{try}`` is among them.
"""

import re
from collections.abc import Mapping
from typing import Final

from attrs import evolve

from postpress_async.models import CustomProxy
from postpress_async.rotation._column_names import field_of

TRY: Final = "try"
OWN_NAMES: Final = frozenset({"account_id", TRY})
"""Placeholders that are not optional columns of a row. In a password, one of them must be present."""

_PLACEHOLDER: Final = re.compile(r"\{([A-Za-z][\w -]*)\}", re.ASCII)


def placeholders(proxy: CustomProxy) -> frozenset[str]:
    """Return the names of the placeholders in *proxy*; empty if *proxy* is not a template."""
    username = _names(proxy.username or "")
    return username if proxy.password is None else username | _password_names(proxy.password.reveal())


def fill_in(template: CustomProxy, fields: Mapping[str, str]) -> CustomProxy:
    """Return *template* with its placeholders replaced by *fields*, which must have a value for each."""

    def filled(text: str) -> str:
        return _PLACEHOLDER.sub(lambda match: fields[field_of(match[1])], text)

    password = template.password and template.password.reveal()
    if password and _password_names(password):
        password = filled(password)
    return evolve(template, username=template.username and filled(template.username), password=password)


def _names(text: str) -> frozenset[str]:
    return frozenset(map(field_of, _PLACEHOLDER.findall(text))) if "{" in text else frozenset()


def _password_names(password: str) -> frozenset[str]:
    names = _names(password)
    return names if names & OWN_NAMES else frozenset()
