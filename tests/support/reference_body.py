"""How request bodies were written before cattrs did it: a reference for their bytes."""

import json
from json.encoder import encode_basestring_ascii as quoted

from cattrs import Converter

from postpress_async.models import CustomProxy, ManagedProxy, ProxyChange
from postpress_async.secret import Secret

_converter = Converter(omit_if_default=True)
_converter.register_unstructure_hook(Secret, Secret.reveal)


def reference_body(change: ProxyChange) -> bytes:
    """The body for *change*: of the models by hand, of subclasses by a converter with one hook."""
    if isinstance(change, CustomProxy):
        text = '{"proxy":' + (_custom(change) if type(change) is CustomProxy else _any(change)) + "}"
    else:
        text = _managed(change) if type(change) is ManagedProxy else _any(change)
    return text.encode("ascii")


def _custom(change: CustomProxy) -> str:
    text = f'{{"host":{quoted(change.host)},"port":{change.port}'
    if change.protocol is not None:
        text += f',"protocol":"{change.protocol}"'
    if change.username is not None:
        text += f',"username":{quoted(change.username)}'
    if change.password is not None:
        text += f',"password":{quoted(change.password.reveal())}'
    return text + "}"


def _managed(change: ManagedProxy) -> str:
    if change.ip is None:
        return f'{{"country":"{change.country}"}}'
    if change.country is None:
        return f'{{"ip":{quoted(change.ip)}}}'
    return f'{{"country":"{change.country}","ip":{quoted(change.ip)}}}'


def _any(change: ProxyChange) -> str:
    return json.dumps(_converter.unstructure(change), separators=(",", ":"))
