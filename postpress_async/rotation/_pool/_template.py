"""
Templates: proxies of a gateway whose user name or password differs from account to account.

``customer-{account_id}-cc-{country}-s{try}`` has three placeholders. ``{try}`` is the number of proxies that
the account has had before in this run; any other name is a column of the account's row.
"""

import re
from collections.abc import Mapping
from typing import Final

from attrs import evolve

from postpress_async.models import CustomProxy
from postpress_async.rotation._fleet._row import field_of

TRY: Final = "try"

_PLACEHOLDER: Final = re.compile(r"\{([A-Za-z][\w -]*)\}", re.ASCII)


def placeholders(proxy: CustomProxy) -> frozenset[str]:
    """
    Return the names in the template *proxy*; empty if it is not a template.

    A password may contain braces for other reasons, so it makes a proxy a template only if it contains
    ``{account_id}`` or ``{try}``.
    """
    user, password = (
        frozenset(map(field_of, _PLACEHOLDER.findall(text)))
        for text in (proxy.username or "", "" if proxy.password is None else proxy.password.reveal())
    )
    return user | password if user or password & {"account_id", TRY} else frozenset()


def fill_in(template: CustomProxy, fields: Mapping[str, str]) -> CustomProxy:
    """Return the proxy with its placeholders replaced by *fields*, which have a value for each."""

    def filled(text: str) -> str:
        return _PLACEHOLDER.sub(lambda match: fields[field_of(match[1])], text)

    password = template.password
    return evolve(
        template,
        username=template.username and filled(template.username),
        password=password and filled(password.reveal()),
    )
