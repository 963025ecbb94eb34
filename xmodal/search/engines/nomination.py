"""From the vectors that are near to a query's to the items that are worth scoring."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xmodal.search.engines.server import Near


class Nominee(NamedTuple):
    """An item that may match a query."""

    number: int
    """Of the item in the whole collection, whose items are dealt to the servers in turn."""
    server: int
    near: Near


def merged(lists: Mapping[int, Sequence[Near]], servers: int, count: int) -> list[Nominee]:
    """The nearest of what several servers found near to one vector: what one server with all items would have found.

    Args:
        lists: what each server found, by its number.
        servers: how many servers the items were dealt to.
        count: how many vectors are wanted; each server was asked for as many.

    >>> from xmodal.search.engines.server import Near
    >>> lists = {0: [Near("a", 0, 1, 0.9), Near("c", 1, 1, 0.2)], 1: [Near("b", 0, 1, 0.5)]}
    >>> [nominee.near.id for nominee in merged(lists, servers=2, count=2)]
    ['a', 'b']
    """
    found = [Nominee(near.item * servers + server, server, near) for server in lists for near in lists[server]]
    found.sort(key=lambda nominee: (-nominee.near.product, nominee.number))
    return found[:count]


def nominated(lists: Sequence[Sequence[Nominee]], count: int) -> list[Nominee]:
    """The items whose vectors are nearest to all vectors of a query, best first.

    An item is worth the mean over the query's vectors of its greatest product with each. Of an item that a list does
    not have is known that its product is not above the last of that list.

    Args:
        lists: the nearest vectors to each vector of the query, nearest first.
        count: how many items.

    >>> from xmodal.search.engines.server import Near
    >>> a, b, c = (Nominee(n, 0, Near(name, n, 1, 0.0)) for n, name in enumerate("abc"))
    >>> def near(nominee, product): return nominee._replace(near=nominee.near._replace(product=product))
    >>> lists = [[near(a, 0.9), near(b, 0.8)], [near(c, 0.75), near(b, 0.6)]]
    >>> [nominee.near.id for nominee in nominated(lists, count=2)]
    ['c', 'a']
    """
    known = {nominee.number: nominee for nominees in lists for nominee in nominees}
    column = {number: place for place, number in enumerate(known)}
    worth = np.empty((len(lists), len(known)))
    for row, nominees in zip(worth, lists, strict=True):
        row[:] = nominees[-1].near.product
        for nominee in reversed(nominees):  # the greatest comes first, and is written last
            row[column[nominee.number]] = nominee.near.product
    means = dict(zip(known, worth.mean(axis=0).tolist(), strict=True))
    return sorted(known.values(), key=lambda nominee: (-means[nominee.number], nominee.number))[:count]
