"""Several pools with tags. The tag of an account chooses its pool."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TypeAlias, Unpack

from postpress_async.rotation._column_names import Tag, as_tag
from postpress_async.rotation._pool import PooledProxy, PoolOptions, ProxyPool, as_pooled
from postpress_async.rotation._pool._proxy_list import ListedProxy
from postpress_async.rotation._selection import Selection

Pools: TypeAlias = Mapping[Tag, ProxyPool]
"""The pools of a rotation by tag. A single pool has the tag None. Without a pool, the mapping is empty."""


def pools_of(pool: ProxyPool | Mapping[str, ProxyPool] | None) -> Pools:
    """Return *pool* by tag. Raises `ValueError` if two pools have the same tag or the same proxy."""
    if pool is None:
        return {}
    if isinstance(pool, ProxyPool):
        return {None: pool}
    advice = "write ProxyPool(proxies)"
    if not isinstance(pool, Mapping):
        raise ValueError(f"pool must be a ProxyPool, got {type(pool).__name__}: {advice}")
    pools: dict[Tag, ProxyPool] = {}
    owners: dict[str, str] = {}
    for name, tagged in pool.items():
        if not isinstance(tagged, ProxyPool):
            raise ValueError(f"pool[{name!r}] must be a ProxyPool, got {type(tagged).__name__}: {advice}")
        tag = as_tag(name) if isinstance(name, str) else ""
        if tag in pools or not tag:
            raise ValueError(f"each pool needs a tag of its own, got {name!r}: case and spaces do not matter")
        pools[tag] = tagged
        for pooled in tagged:
            if (owner := owners.setdefault(pooled.label, tag)) != tag:
                raise ValueError(
                    f"{pooled.label} is in the pools {owner} and {tag}: remove it from one of them"
                )
    if not pools:
        raise ValueError("pool must have at least one ProxyPool, got an empty mapping")
    return pools


def argument_of(pools: Pools) -> ProxyPool | Mapping[str, ProxyPool] | None:
    """Return *pools* as the argument of ``session.rotate``: the inverse of `pools_of`."""
    return pools.get(None) or {tag: pool for tag, pool in pools.items() if tag} or None


def without_selected(pools: Pools, selection: Selection | None) -> Pools:
    """
    Return *pools* without the proxies that *selection* matches, because its accounts must get other proxies.

    A pool without other proxies stays as it is, because its proxies may have new passwords.
    """
    if selection is None:
        return pools
    remaining: dict[Tag, ProxyPool] = {}
    for tag, pool in pools.items():
        others = [pooled for pooled in pool if not selection.matches(pooled.label)]
        options = {name: getattr(pool, name) for name in PoolOptions.__annotations__}
        remaining[tag] = ProxyPool(others, **options) if 0 < len(others) < len(pool) else pool
    return remaining


def make_pools(proxies: Iterable[ListedProxy], **options: Unpack[PoolOptions]) -> Pools:
    by_tag: dict[Tag, list[PooledProxy]] = {}
    for entry in proxies:
        by_tag.setdefault(entry.tag, []).append(as_pooled(entry.proxy))
    return {tag: ProxyPool(pooled, **options) for tag, pooled in by_tag.items()}


def digest_of(pools: Pools) -> bytes:
    """SHA-256 of everything that determines the assignment, like `ProxyPool.digest`; empty without pools."""
    if pools.keys() <= {None}:
        return b"".join(pool.digest for pool in pools.values())
    digests = sorted((tag, pool.digest.hex()) for tag, pool in pools.items() if tag)
    return hashlib.sha256(json.dumps(digests).encode()).digest()
