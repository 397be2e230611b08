"""Uploaded pictures are kept while there is room and time, and not longer."""

from __future__ import annotations

import asyncio

from serve.files.store import FileStore


def test_the_file_that_was_not_used_for_longest_makes_room():
    async def scenario() -> None:
        store = FileStore(most_bytes=30, seconds=60)
        first, second, third = [await store.put(bytes(10), name) for name in "abc"]
        assert await store.get(first.id) == first
        fourth = await store.put(bytes(15), "d")
        assert [await store.get(file.id) is not None for file in (first, second, third, fourth)] == [
            *(True, False, False, True),
        ]
        assert store.bytes_held == 25
        await store.put(bytes(30), "e")
        assert store.bytes_held == 30
        store.close()
        assert store.bytes_held == 0

    asyncio.run(scenario())


def test_files_end_by_themselves_after_their_last_use():
    async def scenario() -> None:
        store = FileStore(most_bytes=100, seconds=0.2)
        used, unused = await store.put(bytes(10), "a"), await store.put(bytes(10), "b")
        for _ in range(4):
            await asyncio.sleep(0.1)
            assert await store.get(used.id) is not None
        assert store.bytes_held == 10
        assert await store.get(unused.id) is None
        await asyncio.sleep(0.4)
        assert store._files == {}, "no call was needed"

    asyncio.run(scenario())


def test_ids_cannot_be_guessed_and_are_deleted_once():
    async def scenario() -> None:
        store = FileStore(most_bytes=10**6, seconds=60)
        ids = {(await store.put(b"x", "")).id for _ in range(1000)}
        assert len(ids) == 1000
        assert all(len(one) > 32 for one in ids)
        one = ids.pop()
        assert [await store.delete(one), await store.delete(one)] == [True, False]
        store.close()

    asyncio.run(scenario())
