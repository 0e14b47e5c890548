"""The public names, and where the reference has each."""

import inspect
from importlib import import_module
from types import ModuleType

# Of these modules a name without an underscore is a promise; of the last ones, those named here.
WHOLE = ["", "errors", "events", "models", "rotation", "sandbox", "cluster"]
SOME = {
    "rotation.pool": ["PooledProxy"],
    "rotation.fleet": ["Survey"],
    "rotation.plan": ["Fault", "Faults"],
    "rotation.report": ["write_report"],
    "rotation.journal.reading": ["JournalView"],
    "sandbox.thread": ["SandboxThread"],
    "telemetry": ["Telemetry"],
    "pytest_plugin": ["postpress_sandbox"],
}


def public() -> dict[str, object]:
    """Each public name, as a user imports it, and what it is; a name of two modules is told of the first."""
    found: dict[str, object] = {}
    for place in [*WHOLE, *SOME]:
        module = import_module(f"postpress_async.{place}".removesuffix("."))
        for name in SOME.get(place) or _names(module):
            value = getattr(module, name)
            if not inspect.ismodule(value) and not any(value is other for other in found.values()):
                found[f"{module.__name__}.{name}"] = value
    return found


def _names(module: ModuleType) -> list[str]:
    if hasattr(module, "__all__"):
        return [name for name in module.__all__ if not name.startswith("__")]
    ours = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__.startswith("postpress_async")
    ]
    # `Scope` in events, and what models takes from errors, is there to be used, not to be imported.
    return [name for name in ours if _is_handed_on(module, name)]


def _is_handed_on(module: ModuleType, name: str) -> bool:
    value = vars(module)[name]
    return value.__module__ == module.__name__ or f"{name} as {name}" in inspect.getsource(module)


def home(name: str, value: object) -> str:
    """Where it is defined, which is where the reference tells of it."""
    module = getattr(value, "__module__", "")
    if module.startswith("postpress_async") and (inspect.isclass(value) or inspect.isfunction(value)):
        return f"{module}.{value.__qualname__}"
    return name


def homes() -> dict[str, str]:
    """By each way a docstring may name it: ``Outcome``, ``Outcome.applied``, ``errors.ProxyError``."""
    found: dict[str, str] = {}
    for name, value in public().items():
        place = home(name, value)
        for short in (name, name.removeprefix("postpress_async."), name.rpartition(".")[2]):
            found.setdefault(short, place)
            for member in members(value):
                found.setdefault(f"{short}.{member}", f"{place}.{member}")
                if short == "PostPressSession":  # there is one, and everybody knows which is meant
                    found |= {member: f"{place}.{member}", f"session.{member}": f"{place}.{member}"}
    return found


def members(value: object) -> list[str]:
    """The public methods and properties that a class defines itself."""
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
