"""What the installation assumes where nobody says: the configuration file's `[defaults]`, and over them the stored Settings."""

from __future__ import annotations

from dataclasses import replace

from controlplane.config import Defaults
from controlplane.store import keys
from controlplane.store.cache import Cache
from controlplane.store.client import Entry
from kumihimo.v1 import network_pb2, settings_pb2


class Installation:
    """The defaults in force, at once after the Settings have changed. file: those of the configuration file."""

    def __init__(self, cache: Cache, file: Defaults) -> None:
        self._cache = cache
        self._file = file
        self._last = b"", file

    def now(self) -> Defaults:
        """By the Settings that this replica knows."""
        return self.of(self._cache.get(keys.SETTINGS))

    def of(self, settings: Entry | None) -> Defaults:
        """By these Settings; the same object as long as they are the same."""
        value = settings.value if settings else b""
        if value != self._last[0]:
            self._last = value, self.over_file(settings_pb2.Settings.FromString(value))
        return self._last[1]

    def over_file(self, settings: settings_pb2.Settings) -> Defaults:
        """What is in force by given Settings."""
        names = ("underlay_mtu", "underlay_ip_version", "dns_domain", "mac_base", "availability_zone")
        said = {name: getattr(settings, name) for name in names if getattr(settings, name)}
        if settings.network_type:
            said["network_type"] = network_pb2.NetworkType.Name(settings.network_type).removeprefix("NETWORK_TYPE_").lower()
        return replace(self._file, **said)
