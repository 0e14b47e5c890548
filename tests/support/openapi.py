"""
The API of the sandbox's server as an OpenAPI 3.1 document, from which the fuzz tests generate requests.

It follows the API's reference and quickstart. What they do not specify, such as the range of a port or the
characters of an id, is as the server implements it.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from postpress_async.sandbox._catalogue import TYPES, UNLISTED
from postpress_async.sandbox._responses import Envelope


def document(envelope: Envelope = "page") -> dict[str, Any]:
    """Return the document, with the error schema of *envelope*."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "PostPress sandbox",
            "version": "1",
            "description": "One endpoint of the PostPress API, on loopback.",
        },
        "servers": [{"url": "/v1"}],
        "security": [{"key": []}, {"bearer": []}],
        "paths": {"/accounts/{id}": {"patch": _UPDATE | {"responses": _responses()}}},
        "components": {
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "X-API-KEY"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
            "schemas": _SCHEMAS | {"Error": _ERRORS[envelope]},
        },
    }


def _responses() -> dict[str, Any]:
    """Return the responses for 200, every status of the API's reference, and the statuses in `UNLISTED`."""
    responses = {"200": _response("The account has its new proxy.", {"$ref": "#/components/schemas/Patched"})}
    types: dict[int, list[str]] = {}
    for type_, entry in {**TYPES, **UNLISTED}.items():
        types.setdefault(entry.status, []).append(type_)
    for status, names in sorted(types.items()):
        description = f"{HTTPStatus(status).phrase}: {', '.join(names)}."
        responses[str(status)] = _response(description, {"$ref": "#/components/schemas/Error"})
    responses["405"]["headers"] = {"Allow": {"required": True, "schema": {"const": "PATCH"}}}
    responses["429"]["headers"] = {
        "Retry-After": {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds to wait."}
    }
    return responses


def _response(description: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


_UPDATE: Final = {
    "operationId": "updateAccountProxy",
    "summary": "Update account proxy",
    "description": "Update the proxy configuration of an existing account.",
    "parameters": [
        {
            "name": "id",
            "in": "path",
            "required": True,
            "description": "The id of the account to update.",
            "schema": {"type": "string", "pattern": "^[A-Za-z0-9._~-]+$"},
        },
        {
            "name": "Idempotency-Key",
            "in": "header",
            "description": "A request that repeats a key gets the stored response and changes nothing.",
            "schema": {"type": "string"},
        },
    ],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/Change"},
                "examples": {
                    "custom": {
                        "value": {
                            "proxy": {
                                "protocol": "https",
                                "host": "proxy.example.com",
                                "port": 8080,
                                "username": "proxyuser",
                                "password": "********",
                            }
                        }
                    },
                    "managed": {"value": {"country": "US", "ip": "203.0.113.42"}},
                },
            }
        },
    },
}

_SCHEMAS: Final = {
    "Change": {
        "description": "Either a custom proxy, or country / ip to request a postpress-managed proxy.",
        "oneOf": [
            {"$ref": "#/components/schemas/CustomChange"},
            {"$ref": "#/components/schemas/ManagedChange"},
        ],
    },
    "CustomChange": {
        "type": "object",
        "required": ["proxy"],
        "additionalProperties": False,
        "properties": {"proxy": {"$ref": "#/components/schemas/Proxy"}},
    },
    "ManagedChange": {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": False,
        "properties": {
            "country": {
                "type": "string",
                "minLength": 2,
                "maxLength": 2,
                "description": "ISO 3166-1 alpha-2 country code of a new postpress-managed proxy location.",
            },
            "ip": {
                "type": "string",
                "format": "ipv4",
                "description": "IPv4 address used to infer the proxy country.",
            },
        },
    },
    "Proxy": {
        "type": "object",
        "required": ["host", "port"],
        "additionalProperties": False,
        "properties": {
            "host": {"type": "string", "minLength": 1},
            "port": {"type": "integer", "minimum": 1, "maximum": 65535},
            "protocol": {"enum": ["https", "http", "socks5"]},
            "username": {"type": "string"},
            "password": {"type": "string", "format": "password"},
        },
    },
    "Patched": {
        "type": "object",
        "required": ["object", "account_id"],
        "properties": {
            "object": {"const": "AccountPatched"},
            "account_id": {"type": "string", "minLength": 1},
        },
    },
}

_ERRORS: Final[Mapping[Envelope, Any]] = {
    "page": {
        "type": "object",
        "required": ["title", "type", "status"],
        "properties": {
            "title": {"type": "string"},
            "detail": {"type": "string"},
            "instance": {"type": "string", "description": "Request identifier for support."},
            "type": {"enum": [*TYPES, *UNLISTED]},
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
        },
    },
    "quickstart": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["code", "message"],
                "properties": {
                    "code": {"type": "string"},
                    "message": {"type": "string"},
                    "request_id": {"type": "string"},
                },
            }
        },
    },
}
