"""The section [store] of the API's configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.config import load
from controlplane.errors import BadConfig


def written(folder: Path, store: str) -> Path:
    """A configuration with a section [store]."""
    for name in ("crt", "key", "tokens"):
        (folder / name).touch()
    file = folder / "api.toml"
    file.write_text(
        f'listen = ["127.0.0.1:7443"]\netcd = ["127.0.0.1:2379"]\ntls_certificate = "{folder}/crt"\n'
        f'tls_key = "{folder}/key"\ntokens = "{folder}/tokens"\n{store}\n'
    )
    return file


@pytest.mark.parametrize(
    ("text", "seconds"),
    [('"1h"', 3600), ('"30m"', 1800), ('"2d"', 172800), ('"90s"', 90), ("90", 90), ("1.5", 1.5), ('"1"', 1)],
)
def test_history(text: str, seconds: float, tmp_path: Path) -> None:
    settings = load(written(tmp_path, f"[store]\nhistory = {text}\nquota_bytes = 5")).store
    assert (settings.history, settings.quota) == (seconds, 5)


def test_defaults(tmp_path: Path) -> None:
    settings = load(written(tmp_path, "")).store
    assert (settings.history, settings.quota) == (3600, 2 << 30)


@pytest.mark.parametrize(
    ("store", "told"),
    [
        ('history = "soon"', "store.history is 'soon'; a time of at least 1 s is accepted"),
        ("history = 0", "store.history is 0; a time"),
        ("history = true", "store.history is True; a time"),
        ("quota_bytes = 0", "store.quota_bytes is 0; a number of bytes is accepted"),
        ('quota_bytes = "2G"', "store.quota_bytes is '2G'; a number"),
        ("quota = 1", "store.quota means nothing; accepted are history, quota_bytes"),
    ],
)
def test_what_is_no_setting_is_named(store: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(BadConfig) as error:
        load(written(tmp_path, f"[store]\n{store}"))
    assert str(error.value).startswith(f"{tmp_path}/api.toml: {told}")
