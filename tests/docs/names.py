"""The public names of the package, for tests of the documentation and of the public API."""

import inspect
from importlib import import_module
from types import ModuleType

ALL_NAMES_PUBLIC = ["", "errors", "events", "models", "rotation", "sandbox", "cluster"]
"""Modules in which every name without an underscore is public; "" is the package itself."""

SOME_NAMES_PUBLIC = {
    "rotation.report": ["write_report"],
    "telemetry": ["Telemetry"],
    "pytest_plugin": ["postpress_sandbox"],
}
"""Modules in which only the listed names are public."""


def public() -> dict[str, object]:
    """Return the public objects by import path. An object in two modules has the path in the first module."""
    objects: dict[str, object] = {}
    for module_name in [*ALL_NAMES_PUBLIC, *SOME_NAMES_PUBLIC]:
        module = import_module(f"postpress_async.{module_name}".removesuffix("."))
        for name in SOME_NAMES_PUBLIC.get(module_name) or _public_names(module):
            value = getattr(module, name)
            if not inspect.ismodule(value) and not any(value is other for other in objects.values()):
                objects[f"{module.__name__}.{name}"] = value
    return objects


def _public_names(module: ModuleType) -> list[str]:
    if hasattr(module, "__all__"):
        return [name for name in module.__all__ if not name.startswith("__")]
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__.startswith("postpress_async")
        and _is_exported(module, name)
    ]


def _is_exported(module: ModuleType, name: str) -> bool:
    """Whether *module* defines or re-exports the name. It may only use it, as events uses `Scope`."""
    value = vars(module)[name]
    return value.__module__ == module.__name__ or f"{name} as {name}" in inspect.getsource(module)


def members(value: object) -> list[str]:
    """Return the names of the documented public methods and properties that a class itself defines."""
    if not inspect.isclass(value):
        return []
    kinds = (property, classmethod, staticmethod)
    return [
        name
        for name, member in vars(value).items()
        if not name.startswith("_")
        and (inspect.isfunction(member) or isinstance(member, kinds))
        and getattr(member, "__doc__", None)
    ]
