"""Keys and their shares, without a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from casa_core.errors import ConfigError
from infra.api_keys import ApiKey, as_text, make_key, read_keys
from serve.access.keys import KeyRing
from serve.access.refused import Refused


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def ring_of(path: Path, *keys: ApiKey) -> tuple[KeyRing, Clock]:
    path.write_text(as_text(list(keys)))
    return KeyRing(path, clock := Clock()), clock


def test_the_file_never_holds_a_key(tmp_path: Path):
    secret, stored = make_key("alice", requests_per_minute=3)
    (tmp_path / "keys").write_text(as_text([stored]))
    assert secret not in (tmp_path / "keys").read_text()
    assert secret.removeprefix("casa-") not in (tmp_path / "keys").read_text()
    assert read_keys(tmp_path / "keys") == [stored]
    assert make_key("alice")[0] != secret


def test_a_key_names_its_owner_and_another_is_refused(tmp_path: Path):
    (first, alice), (second, bob) = make_key("alice"), make_key("bob")
    ring, _ = ring_of(tmp_path / "keys", alice, bob)
    assert ring.owner(first) == alice
    assert ring.owner(second) == bob
    for wrong in (None, "", first[:-1], first + "x", alice.sha256, "\ud83d", "ключ"):
        with pytest.raises(Refused) as refusal:
            ring.owner(wrong)
        assert (refusal.value.status, refusal.value.code) == (401, "invalid_api_key")


def test_calls_beyond_a_keys_share_wait_for_the_oldest_to_be_a_minute_old(tmp_path: Path):
    _, alice = make_key("alice", requests_per_minute=2)
    ring, clock = ring_of(tmp_path / "keys", alice)
    ring.count_request(alice)
    clock.now += 20
    ring.count_request(alice)
    with pytest.raises(Refused) as refusal:
        ring.count_request(alice)
    assert refusal.value.status == 429
    assert refusal.value.headers == {"retry-after": "40"}
    clock.now += 40
    ring.count_request(alice)
    with pytest.raises(Refused):
        ring.count_request(alice)


def test_keys_that_are_added_and_removed_count_without_a_restart(tmp_path: Path):
    (first, alice), (second, bob) = make_key("alice"), make_key("bob")
    ring, clock = ring_of(tmp_path / "keys", alice)
    (tmp_path / "keys").write_text(as_text([bob, *[make_key(f"k{i}")[1] for i in range(3)]]))
    clock.now += 2
    assert ring.owner(second) == bob
    with pytest.raises(Refused):
        ring.owner(first)


def test_a_file_that_breaks_later_leaves_the_keys_as_they_were(tmp_path: Path):
    secret, alice = make_key("alice")
    ring, clock = ring_of(tmp_path / "keys", alice)
    (tmp_path / "keys").write_text("{broken")
    clock.now += 2
    assert ring.owner(secret) == alice
    (tmp_path / "keys").unlink()
    clock.now += 2
    assert ring.owner(secret) == alice


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "Line 1"),
        ('{"name": "a"}', "sha256"),
        ('\n{"name": "a b", "sha256": "' + "0" * 64 + '", "created": ""}', "Line 2"),
        (as_text([make_key("a")[1], make_key("a")[1]]), "twice"),
    ],
)
def test_a_broken_file_is_refused_by_line_and_field(tmp_path: Path, text: str, says: str):
    (tmp_path / "keys").write_text(text)
    with pytest.raises(ConfigError) as error:
        KeyRing(tmp_path / "keys")
    assert says in str(error.value)


def test_a_missing_file_names_the_command_that_makes_one(tmp_path: Path):
    with pytest.raises(ConfigError) as error:
        KeyRing(tmp_path / "none")
    assert "casa keys add" in error.value.remedy
