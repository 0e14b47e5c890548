"""An independent implementation of request bodies, from before the package used cattrs for them."""

import json
from json.encoder import encode_basestring_ascii as quoted

from cattrs import Converter

from postpress_async.models import CustomProxy, ManagedProxy, ProxyChange
from postpress_async.secret import Secret

_converter = Converter(omit_if_default=True)
_converter.register_unstructure_hook(Secret, Secret.reveal)


def reference_body(change: ProxyChange) -> bytes:
    """Return the body of the request that makes *change*."""
    if type(change) is CustomProxy:
        fields = _custom_fields(change)
    elif type(change) is ManagedProxy:
        fields = _managed_fields(change)
    else:  # a subclass
        fields = json.dumps(_converter.unstructure(change), separators=(",", ":"))
    text = f'{{"proxy":{fields}}}' if isinstance(change, CustomProxy) else fields
    return text.encode("ascii")


def _custom_fields(change: CustomProxy) -> str:
    text = f'{{"host":{quoted(change.host)},"port":{change.port}'
    if change.protocol is not None:
        text += f',"protocol":"{change.protocol}"'
    if change.username is not None:
        text += f',"username":{quoted(change.username)}'
    if change.password is not None:
        text += f',"password":{quoted(change.password.reveal())}'
    return text + "}"


def _managed_fields(change: ManagedProxy) -> str:
    if change.ip is None:
        return f'{{"country":"{change.country}"}}'
    if change.country is None:
        return f'{{"ip":{quoted(change.ip)}}}'
    return f'{{"country":"{change.country}","ip":{quoted(change.ip)}}}'
