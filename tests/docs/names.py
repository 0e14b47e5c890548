"""The public names, and the paths of their definitions, under which the reference has them."""

import inspect
from importlib import import_module
from types import ModuleType

# All names of WHOLE without an underscore are public; of SOME only the listed ones are.
WHOLE = ["", "errors", "events", "models", "rotation", "sandbox", "cluster"]
SOME = {
    "rotation.report": ["write_report"],
    "telemetry": ["Telemetry"],
    "pytest_plugin": ["postpress_sandbox"],
}


def public() -> dict[str, object]:
    """The public objects by the path that a user imports; an object of two modules has the first path."""
    objects: dict[str, object] = {}
    for module_name in [*WHOLE, *SOME]:
        module = import_module(f"postpress_async.{module_name}".removesuffix("."))
        for name in SOME.get(module_name) or _names(module):
            value = getattr(module, name)
            if not inspect.ismodule(value) and not any(value is other for other in objects.values()):
                objects[f"{module.__name__}.{name}"] = value
    return objects


def _names(module: ModuleType) -> list[str]:
    if hasattr(module, "__all__"):
        return [name for name in module.__all__ if not name.startswith("__")]
    names = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__.startswith("postpress_async")
    ]
    # Names that a module only uses, such as `Scope` in events, are not public there.
    return [name for name in names if _is_exported(module, name)]


def _is_exported(module: ModuleType, name: str) -> bool:
    value = vars(module)[name]
    return value.__module__ == module.__name__ or f"{name} as {name}" in inspect.getsource(module)


def home(name: str, value: object) -> str:
    """The path of the object's definition."""
    module = getattr(value, "__module__", "")
    if module.startswith("postpress_async") and (inspect.isclass(value) or inspect.isfunction(value)):
        return f"{module}.{value.__qualname__}"
    return name


def members(value: object) -> list[str]:
    """The public methods and properties that a class itself defines."""
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
