"""What the pool of a rotation needs from the rows that get their proxies from it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, TypeAlias, Union

from attrs import frozen

from postpress_async._fields import printable
from postpress_async.models import FieldError
from postpress_async.rotation._column_names import TAG, Tag, as_tag

if TYPE_CHECKING:  # it reads lists of proxies by the package of fleets, which imports this module
    from postpress_async.rotation._pool import ProxyPool

Pooled: TypeAlias = Union[bool, "PoolNeeds", "ProxyPool", Mapping[str, "ProxyPool"]]
"""A pool, or several by tag; True for one without templates, and False for none."""

_SHOWN: Final = 10  # tags in a message


@frozen
class PoolNeeds:
    """What a pool, or several tagged pools, need from each row that gets its proxy from them."""

    columns: Mapping[Tag, tuple[str, ...]]  # columns in the templates of a pool, by its tag
    by: str | None = None  # the column that contains the tag; None if there is only one pool

    @classmethod
    def of(cls, pooled: Pooled, by: str = TAG) -> "PoolNeeds | None":
        """Return the needs of *pooled*, whose tags are in the column *by*; None if it is False."""
        if pooled is False or isinstance(pooled, PoolNeeds):
            return pooled or None
        if isinstance(pooled, Mapping):
            return cls(dict(sorted((as_tag(name), pool.columns) for name, pool in pooled.items())), by)
        return cls({None: () if pooled is True else pooled.columns})

    @property
    def names(self) -> tuple[str, ...]:
        """All columns that are needed. They choose the proxy, and do not order a managed one."""
        names = {self.by} if self.by else set[str]()
        return tuple(sorted(names.union(*self.columns.values())))

    def tag_of(self, fields: Mapping[str, str]) -> Tag:
        """The tag of a row. Raises `FieldError` if no pool has it, or the pool needs another field."""
        tag = None
        if self.by is not None:
            tag = as_tag(fields.get(self.by, ""))
            tags = ", ".join(sorted(filter(None, self.columns))[:_SHOWN])
            if not tag:
                raise FieldError(self.by, f"{self.by} missing", f"it must name a pool, such as {tags}")
            if tag not in self.columns:
                advice = f"add a pool for it, or correct it; the pools are {tags}"
                raise FieldError(self.by, f"no pool for {printable(tag[:40])}", advice)
        for name in self.columns[tag]:
            if not (field := fields.get(name)):
                raise FieldError(name, f"{name} missing", "a template of the pool contains it: fill it in")
            if not field.isprintable() or len(field) > 256:
                advice = "a template of the pool contains it: it must be up to 256 printable characters"
                raise FieldError(name, f"{name} not usable", advice)
        return tag
