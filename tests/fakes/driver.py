"""A driver over a dictionary, and the conformance suite that it and the real drivers pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent.model.item import Driver, Failure, Item, Key


class FakeDriver:
    """Driver (agent.model.item) over `there`. `refuse` fails keys; `broken` makes every call raise; `log` keeps the calls."""

    def __init__(self, kinds: frozenset[str], there: Sequence[Item] = ()) -> None:
        self.kinds = kinds
        self.there: dict[Key, Item] = {item.key: item for item in there}
        self.refuse: set[Key] = set()
        self.broken = False
        self.reads = 0
        self.log: list[tuple[str, Key]] = []

    async def read_owned(self) -> Mapping[Key, Item]:
        self._check()
        self.reads += 1
        return dict(self.there)

    async def apply(self, put: Sequence[Item], delete: Sequence[Item]) -> Mapping[Key, Failure]:
        self._check()
        for item in put:
            if item.key not in self.refuse:
                self.log.append(("put", item.key))
                self.there[item.key] = item
        for item in delete:
            if item.key not in self.refuse:
                self.log.append(("delete", item.key))
                self.there.pop(item.key, None)
        keys = [item.key for item in [*put, *delete]]
        return {key: Failure("REFUSED", "told to") for key in keys if key in self.refuse}

    def _check(self) -> None:
        if self.broken:
            raise ConnectionError("told to be broken")


async def conforms(driver: Driver, first: Item, changed: Item, second: Item) -> None:
    """What every driver must do. `changed` has the key of `first` and another value; the three are of the driver's kinds."""
    assert first.key == changed.key != second.key
    assert {item.key[0] for item in (first, second)} <= driver.kinds
    before = dict(await driver.read_owned())
    assert first.key not in before
    assert second.key not in before
    assert not await driver.apply([first, second], [])
    assert dict(await driver.read_owned()) == before | {first.key: first, second.key: second}
    assert not await driver.apply([first, second], []), "putting what is there succeeds"
    assert not await driver.apply([changed], [])
    assert dict(await driver.read_owned()) == before | {first.key: changed, second.key: second}
    assert not await driver.apply([], [changed])
    assert not await driver.apply([], [changed]), "deleting what is gone succeeds"
    assert not await driver.apply([], [second])
    assert dict(await driver.read_owned()) == before
