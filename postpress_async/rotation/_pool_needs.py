"""The columns and tags that a pool needs in each row that gets its proxy from the pool."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, TypeAlias, Union

from attrs import frozen

from postpress_async.models import FieldError
from postpress_async.rotation._column_names import TAG, Tag, as_tag

if TYPE_CHECKING:  # a circular import: `_pool` reads proxy lists with `_fleet`, which imports this module
    from postpress_async.rotation._pool import ProxyPool

Pooled: TypeAlias = Union[bool, "PoolNeeds", "ProxyPool", Mapping[str, "ProxyPool"]]
"""A pool, or several pools by tag, or their needs; True for one pool without templates, False for no pool."""

_MAX_TAGS_SHOWN: Final = 10  # in a message
_TAG: Final = re.compile(r"[\w .-]{1,40}")
_MAX_FIELD_LENGTH: Final = 256  # characters of a field that a template contains


@frozen
class PoolNeeds:
    """What a pool, or several tagged pools, need in each row that gets its proxy from them."""

    columns: Mapping[Tag, tuple[str, ...]]  # for each pool by its tag, the columns that its templates contain
    by: str | None = None  # the column that contains the tag; None if there is only one pool

    @classmethod
    def of(cls, pooled: Pooled, by: str = TAG) -> "PoolNeeds | None":
        """Return the needs of *pooled*; None if it is False. The column *by* contains the tags."""
        if pooled is False or isinstance(pooled, PoolNeeds):
            return pooled or None
        if isinstance(pooled, Mapping):
            return cls(dict(sorted((as_tag(name), pool.columns) for name, pool in pooled.items())), by)
        return cls({None: () if pooled is True else pooled.columns})

    @property
    def names(self) -> tuple[str, ...]:
        """All columns that are needed. They select a proxy of the pool and do not order a managed proxy."""
        names = {self.by} if self.by else set[str]()
        return tuple(sorted(names.union(*self.columns.values())))

    def tag_of(self, fields: Mapping[str, str]) -> Tag:
        """Return the tag of a row. Raises `FieldError` if no pool has the tag, or if a field is missing."""
        tag = None
        if self.by is not None:
            tag = as_tag(fields.get(self.by, ""))
            tags = ", ".join(sorted(filter(None, self.columns))[:_MAX_TAGS_SHOWN])
            if not tag:
                raise FieldError(self.by, f"{self.by} missing", f"it must name a pool, such as {tags}")
            if tag not in self.columns:
                # A proxy in the place of a tag may contain a password, so show only what looks like a tag.
                shown = tag if _TAG.fullmatch(tag) else "this tag"
                raise FieldError(self.by, f"no pool for {shown}", f"add such a pool, or name one of {tags}")
        fact = "a template of the pool contains it"
        for name in self.columns[tag]:
            if not (field := fields.get(name)):
                raise FieldError(name, f"{name} missing", f"{fact}: fill it in")
            if not field.isprintable() or len(field) > _MAX_FIELD_LENGTH:
                advice = f"{fact}: it must be up to {_MAX_FIELD_LENGTH} printable characters"
                raise FieldError(name, f"{name} not usable", advice)
        return tag
