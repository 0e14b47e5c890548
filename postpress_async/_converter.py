"""
Converts plain data to models and back, with cattrs.

Plain data is what JSON can express: mappings, lists, strings, numbers, booleans and None.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from operator import attrgetter
from typing import Any, Final, TypeGuard, get_args

from attrs import NOTHING, fields
from cattrs import Converter
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from postpress_async.errors import ApiError, PostPressError
from postpress_async.models import (
    AccountPatched,
    Attempt,
    CustomProxy,
    FieldError,
    ManagedProxy,
    ProxyChange,
)
from postpress_async.secret import MASK, Secret

WHAT_TO_WRITE: Final = 'write {"country": "US"} or {"proxy": {"host": "proxy.example.com", "port": 8080}}'
CHANGE_FIELDS: Final = frozenset(
    ("proxy", *(field.name for model in (CustomProxy, ManagedProxy) for field in fields(model)))
)
"""All names that occur in a change as plain data."""

_ERROR_FIELDS: Final = "code scope retryable applied account_id attempts status retry_after".split()
_API_ERROR_FIELDS: Final = [*_ERROR_FIELDS, "type", "title", "detail", "instance"]

converter: Final = Converter(detailed_validation=False)
"""
The cattrs converter of the models.

It structures plain data into models, with the checks of their constructors: an invalid value raises a
`FieldError` that names the field and the rule. A `ProxyChange` is read and written as in the API's reference:
``{"country": "US"}`` or ``{"proxy": {"host": ..., "port": ...}}``. The converter also unstructures outcomes,
events and errors.

Secrets are unstructured as ``***``, and a password ``***`` is rejected when it is structured. To reveal
secrets, use a copy::

    revealing = converter.copy()
    revealing.register_unstructure_hook(Secret, Secret.reveal)

Register hooks of your own on a copy, too. Sessions and rotations do not use this object.
"""


def as_change(value: object) -> ProxyChange:
    """Return *value* as a model, from plain data if necessary; raise `FieldError` if it is neither."""
    if isinstance(value, (CustomProxy, ManagedProxy)):
        return value
    return _structure_change(value, ProxyChange)


def _is_change(kind: object) -> TypeGuard[type[ProxyChange]]:
    return isinstance(kind, type) and issubclass(kind, (CustomProxy, ManagedProxy))


def _is_change_union(kind: object) -> bool:
    return {*get_args(kind)} - {type(None)} == {CustomProxy, ManagedProxy}  # including `ProxyChange | None`


# --- Structuring ---------------------------------------------------------------------------------


@converter.register_structure_hook_factory(lambda kind: _is_change(kind) or kind in (Attempt, AccountPatched))
def _make_structure(cls: type[Any], converter: Converter) -> Callable[[Any, Any], Any]:
    known = {field.name: field for field in fields(cls)}
    required = [name for name, field in known.items() if field.default is NOTHING]
    # Values that the constructor checks are passed unchanged: cattrs would convert "8080" to a number.
    hooks: dict[str, Any] = {
        name: override(struct_hook=_reject_mask if name == "password" else _unchanged)
        for name, field in known.items()
        if field.validator is not None or field.converter is not None
    }
    make: Any = make_dict_structure_fn(cls, converter, **hooks)

    def structure(data: Any, _: Any) -> Any:
        if isinstance(data, cls):
            return data
        if not isinstance(data, Mapping):
            advice = f"must be a mapping with {' and '.join(required) or 'its fields'}, got {_kind(data)}"
            raise FieldError(None, f"{cls.__name__} not a mapping", advice)
        _reject_unknown_keys(data, known)
        for name in required:
            if name not in data:
                raise FieldError(name, f"{name} missing", f"{cls.__name__} requires {' and '.join(required)}")
        return make(data, cls)

    return structure


@converter.register_structure_hook_factory(_is_change_union)
def _make_structure_change(kind: Any, converter: Converter) -> Callable[[Any, Any], ProxyChange | None]:
    may_be_none = type(None) in get_args(kind)
    custom: Callable[[Any, Any], CustomProxy] = converter.get_structure_hook(CustomProxy)
    managed: Callable[[Any, Any], ManagedProxy] = converter.get_structure_hook(ManagedProxy)

    def structure(data: Any, _: Any) -> ProxyChange | None:
        if isinstance(data, (CustomProxy, ManagedProxy)) or (data is None and may_be_none):
            return data
        if not isinstance(data, Mapping):
            raise FieldError("change", "change not a proxy", _advice(data))
        _reject_unknown_keys(data, ("proxy", "country", "ip"), WHAT_TO_WRITE)
        proxy = data.get("proxy")
        managed_fields = [name for name in ("country", "ip") if data.get(name) is not None]
        if proxy is None:
            if not managed_fields:
                raise FieldError(None, "no proxy and no country", WHAT_TO_WRITE)
            return managed({name: data[name] for name in managed_fields}, ManagedProxy)
        if managed_fields:
            advice = "give either proxy, or country and ip, not both"
            raise FieldError(managed_fields[0], "custom and managed mixed", advice)
        if not isinstance(proxy, (Mapping, CustomProxy)):
            raise FieldError("proxy", "proxy not a mapping", _advice(proxy))
        return custom(proxy, CustomProxy)

    return structure


@converter.register_structure_hook
def _structure_secret(value: Any, _: Any) -> Secret:
    return Secret(_reject_mask(value, _))


def _unchanged(value: Any, _: Any) -> Any:
    return value


def _reject_mask(value: Any, _: Any) -> Any:
    if isinstance(value, str) and value == MASK:
        advice = f"{MASK} replaces a secret when it is unstructured; use a converter that reveals secrets"
        raise FieldError("password", "password masked", advice)
    return value


def _reject_unknown_keys(data: Mapping[Any, Any], known: Iterable[str], advice: str | None = None) -> None:
    for key in data:
        if key not in known:
            # A key that does not look like a name is not shown: it may be a misplaced password.
            shown = key if isinstance(key, str) and re.fullmatch(r"[\w-]{1,40}", key) else "one key"
            advice = advice or f"the fields are {', '.join(known)}"
            raise FieldError(None, "unknown key", f"{shown} is not a field: {advice}")


def _advice(value: object) -> str:
    if isinstance(value, str) and "://" in value:
        return "for a URL, write CustomProxy.from_url(url)"
    models = 'ManagedProxy(country="US") or CustomProxy(host=..., port=...)'
    return f"{WHAT_TO_WRITE}, {models}, not {_kind(value)}"


def _kind(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


# --- Unstructuring -------------------------------------------------------------------------------

converter.register_unstructure_hook(StrEnum, attrgetter("_value_"))


@converter.register_unstructure_hook
def _mask(_: Secret) -> str:
    return MASK


@converter.register_unstructure_hook_factory(_is_change)
def _make_unstructure(
    cls: type[ProxyChange], converter: Converter
) -> Callable[[ProxyChange], dict[str, Any]]:
    # The password has no type that cattrs could see; see `_leave_password_to_converter`.
    secret = override(unstruct_hook=converter.get_unstructure_hook(Secret | None))
    return make_dict_unstructure_fn(cls, converter, _cattrs_omit_if_default=True, password=secret)


@converter.register_unstructure_hook_factory(_is_change_union)
def _make_unstructure_change(_: Any, converter: Converter) -> Callable[[ProxyChange], dict[str, Any]]:
    def unstructure(change: ProxyChange) -> dict[str, Any]:
        data: dict[str, Any] = converter.unstructure(change)  # None stays None
        return {"proxy": data} if isinstance(change, CustomProxy) else data

    return unstructure


@converter.register_unstructure_hook_factory(
    lambda kind: isinstance(kind, type) and issubclass(kind, PostPressError)
)
def _make_unstructure_error(_: Any, converter: Converter) -> Callable[[PostPressError], dict[str, Any]]:
    def unstructure(error: PostPressError) -> dict[str, Any]:
        names = _API_ERROR_FIELDS if isinstance(error, ApiError) else _ERROR_FIELDS
        return {"message": str(error)} | {name: converter.unstructure(getattr(error, name)) for name in names}

    return unstructure


# --- For the package itself ----------------------------------------------------------------------

own_converter: Final = converter.copy(omit_if_default=True)
"""The converter for requests, exports and the cluster. It reveals secrets, and has no hooks of users."""
own_converter.register_unstructure_hook(Secret, Secret.reveal)

_structure_change: Final[Callable[[Any, Any], ProxyChange]] = own_converter.get_structure_hook(ProxyChange)
body_of: Final[Callable[[ProxyChange], dict[str, Any]]] = own_converter.get_unstructure_hook(ProxyChange)
"""Returns the request body of a change, with its password. Fields with default values are omitted."""
