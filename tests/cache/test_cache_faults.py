"""The feature cache in trouble: at most one warning a kind of trouble, and never a wrong row."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import warnings
from contextlib import closing, contextmanager

import numpy as np
import pytest
from test_cache import check, digest, digests, finish, make, needs_fork, start

import sklearn_cnnfeat._cache.database as database_module
from sklearn_cnnfeat._cache import FeatureCache
from sklearn_cnnfeat.exceptions import CacheWarning

NUMBERS = range(12)
WIDTHS = {"narrow": 40, "wide": 1500}  # rows within one page, and over several


@contextmanager
def causes():
    """Collect the messages of warnings, of which each must be a `CacheWarning`, told once."""
    told = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield told
    told += [str(warning.message) for warning in caught]
    assert all(warning.category is CacheWarning for warning in caught), told
    assert all("computed again" in message for message in told)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The content of a small file without faults."""
    folder = tmp_path_factory.mktemp("sound")
    with FeatureCache(folder) as cache:
        fill(cache)
        cache.put_many("to be cleared", digests(NUMBERS), np.ones((12, 700), np.float32))
        cache.clear("to be cleared")
    return (folder / "features.sqlite").read_bytes()


def fill(cache):
    for recipe, width in WIDTHS.items():
        cache.put_many(recipe, digests(NUMBERS), make(NUMBERS, width))


def use(cache):
    """Read, write and read everything; return how many rows were there at first and at last."""
    counts = []
    for _ in range(2):
        counts.append(sum(check(cache, r, NUMBERS, width).sum() for r, width in WIDTHS.items()))
        fill(cache)
    cache.info()
    cache.contains_many("wide", digests(NUMBERS))
    return counts


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


class TestDamage:
    def try_file(self, folder, content):
        folder.mkdir()
        (folder / "features.sqlite").write_bytes(content)
        with causes() as told, FeatureCache(folder) as cache:
            before, after = use(cache)
            cache.verify()
        shutil.rmtree(folder)
        assert len(told) <= 2  # rows, and later the file
        assert before == 24 or told or len(content) < 100  # an empty file is a new one
        return after, told

    def test_flipped_bits(self, sound, tmp_path):
        random.seed(0)
        offsets = {*range(100), *random.sample(range(len(sound)), 500)}
        for page in range(0, len(sound), 4096):
            offsets |= set(range(page, page + 12))  # where a page says what it is
        # Without SQLite's name, our number or our format it may be anybody's: it is left alone.
        names = {*range(16), *range(60, 64), *range(68, 72)}
        recovered = 0
        for offset in offsets:
            content = bytearray(sound)
            content[offset] ^= 1 << random.randrange(8)
            after, told = self.try_file(tmp_path / "cache", content)
            if offset in names:
                assert after == 0
                assert len(told) == 1
            recovered += after == 24
        assert recovered > 0.97 * len(offsets - names)

    @pytest.mark.slow
    def test_overwritten_blocks(self, sound, tmp_path):
        random.seed(1)
        for _ in range(150):
            content, size = bytearray(sound), random.choice([8, 64, 512, 4096, 20_000])
            first = random.randrange(len(content) - size)
            content[first : first + size] = random.randbytes(size)
            self.try_file(tmp_path / "cache", content)

    def test_swapped_pages(self, sound, tmp_path):
        random.seed(2)
        pages = [sound[i : i + 4096] for i in range(0, len(sound), 4096)]
        for _ in range(100):
            swapped, (a, b) = list(pages), random.sample(range(len(pages)), 2)
            swapped[a], swapped[b] = swapped[b], swapped[a]
            self.try_file(tmp_path / "cache", b"".join(swapped))

    def test_truncation(self, sound, tmp_path):
        for size in [0, 1, 15, 16, 99, 100, 101, *range(512, len(sound), 1500), len(sound) - 1]:
            after, _ = self.try_file(tmp_path / "cache", sound[:size])
            # An empty file is a new one (to SQLite, so is a single byte); what lacks a whole header
            # could be anybody's.
            assert after == (24 if size <= 1 or size >= 72 else 0)

    def test_damaged_file_is_moved_aside(self, sound, tmp_path):
        file = tmp_path / "features.sqlite"
        for n in (1, 2):
            content = sound[:100] + f"not a database, {n}\n".encode() * 1000
            file.write_bytes(content)
            with causes() as told, FeatureCache(tmp_path) as cache:
                assert use(cache) == [0, 24]
                assert cache.verify().rows == 24
            (message,) = told
            assert "damaged" in message
            assert f"features.sqlite.corrupt-{n}" in message
            assert (tmp_path / f"features.sqlite.corrupt-{n}").read_bytes() == content
            file.unlink()

    def test_damaged_rows_are_replaced(self, sound, tmp_path):
        row = make([3], WIDTHS["narrow"]).tobytes()
        content = bytearray(sound)
        content[content.index(row) + 20] ^= 4
        (tmp_path / "features.sqlite").write_bytes(content)
        with causes() as told, FeatureCache(tmp_path) as cache:
            assert np.flatnonzero(~check(cache, "narrow", NUMBERS, 40)).tolist() == [3]
            assert np.flatnonzero(~check(cache, "narrow", NUMBERS, 40)).tolist() == [3]
            cache.put_many("narrow", digests([3]), make([3], 40))
            assert check(cache, "narrow", NUMBERS, 40).all()
        (message,) = told
        assert "1 of 12 rows" in message

    def test_verify_removes_damaged_rows(self, sound, tmp_path):
        row = make([3], WIDTHS["narrow"]).tobytes()
        content = bytearray(sound)
        content[content.index(row) + 20] ^= 4
        (tmp_path / "features.sqlite").write_bytes(content)
        with causes() as told, FeatureCache(tmp_path) as cache:
            report = cache.verify()
            assert (report.rows, report.bad) == (23, 1)
            report = cache.verify()
            assert (report.rows, report.bad) == (23, 0)
            assert use(cache) == [23, 24]
        assert not told

    @pytest.mark.parametrize(
        "used", ["soon", b"\0\1", 10**18, -5, 0.5, None], ids=lambda value: repr(value)
    )
    def test_damaged_bookkeeping(self, used, sound, tmp_path):
        (tmp_path / "features.sqlite").write_bytes(sound)
        with closing(sqlite3.connect(tmp_path / "features.sqlite")) as connection, connection:
            columns = "SET used = ?" if used is not None else "SET used = ?, crc = 'x'"
            value = 5 if used is None else used
            connection.execute(f"UPDATE rows {columns} WHERE id = 3", (value,))
            if used is None:
                connection.execute("UPDATE recipes SET recipe = ? WHERE id = 1", (b"\xff",))
        with causes() as told, FeatureCache(tmp_path) as cache:
            info = cache.info()
            assert repr(info).startswith("<")
            assert info.rows == 24 and info.newest.year < 2200
            report = cache.verify()
            assert report.bad == (12 if used is None else 1) and report.rows == 24 - report.bad
            assert cache.info().rows == report.rows
            assert use(cache)[1] == 24
        assert not told

    def test_damaged_time_of_use_is_mended_by_a_use(self, sound, tmp_path):
        (tmp_path / "features.sqlite").write_bytes(sound)
        with closing(sqlite3.connect(tmp_path / "features.sqlite")) as connection, connection:
            connection.execute("UPDATE rows SET used = 'never' WHERE id = 3")
        with FeatureCache(tmp_path) as cache:
            assert use(cache) == [24, 24]
        with FeatureCache(tmp_path) as cache:
            assert cache.verify().bad == 0

    def test_another_width(self, tmp_path):
        with causes() as told, FeatureCache(tmp_path) as cache:
            cache.put_many("r", digests([1]), make([1], 50))
            assert not check(cache, "r", [1], 60).any()
            assert not check(cache, "r", [1], 40).any()
            assert check(cache, "r", [1], 50).all()
            cache.put_many("r", digests([1]), make([1], 60))
            assert check(cache, "r", [1], 60).all()
        (message,) = told
        assert "another width" in message

    def test_row_under_another_key(self, sound, tmp_path):
        """Whoever swaps two keys, by accident or not, gets misses."""
        (tmp_path / "features.sqlite").write_bytes(sound)
        with closing(sqlite3.connect(tmp_path / "features.sqlite")) as connection, connection:
            swap = "UPDATE rows SET digest = ? WHERE digest = ?"
            for new, old in ((digest(99), digest(1)), (digest(1), digest(2))):
                connection.execute(swap, (new, old))
            connection.execute("UPDATE recipes SET recipe = 'other' WHERE recipe = 'wide'")
        with causes() as told, FeatureCache(tmp_path) as cache:
            assert check(cache, "narrow", NUMBERS, 40).sum() == 10
            assert not check(cache, "other", NUMBERS, 1500).any()
            assert cache.verify().rows == 10
        assert len(told) == 1

    def test_several_processes_find_the_damage(self, sound, tmp_path):
        code = """
cache = FeatureCache(sys.argv[1])
cache.path.joinpath("ready-" + sys.argv[2]).touch()
while not cache.path.joinpath("go").exists():
    time.sleep(0.001)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for i in range(50):
        cache.put_many("r", [digest(i)], make([i], 500))
        check(cache, "r", range(50), 500)
assert len(caught) <= 1, caught
assert check(cache, "r", range(10, 50), 500).all()
print(len(caught))
"""
        for content in (
            sound[:100] + b"\0" * 4900,
            sound[:100] + random.randbytes(4000) + sound[4100:],
        ):
            folder = tmp_path / str(len(content))
            folder.mkdir()
            (folder / "features.sqlite").write_bytes(content)
            processes = [start(code, folder, n) for n in range(4)]
            while len(list(folder.glob("ready-*"))) < 4:
                assert not any(process.poll() for process in processes)
            (folder / "go").touch()
            assert sum(int(finish(process)) for process in processes) >= 1
            aside = sorted(file.name for file in folder.glob("*corrupt*"))
            assert aside == ["features.sqlite.corrupt-1"]
            assert (folder / aside[0]).read_bytes() == content
            report = FeatureCache(folder).verify()
            assert (report.rows, report.bad) == (50, 0)

    def test_file_replaced_while_it_is_opened(self, sound, tmp_path, monkeypatch):
        """Another process found the damage at the same time: its new file is not moved aside."""
        file = tmp_path / "features.sqlite"
        file.write_bytes(sound[:100] + b"\0" * 4900)
        connect = sqlite3.connect

        def slow_connect(*args, **kwargs):
            monkeypatch.setattr(sqlite3, "connect", connect)
            connection = connect(*args, **kwargs)
            file.rename(tmp_path / "features.sqlite.corrupt-1")
            with FeatureCache(tmp_path) as other:
                other.put_many("r", digests([1]), make([1], 50))
            return connection

        monkeypatch.setattr(sqlite3, "connect", slow_connect)
        with causes() as told:
            assert check(FeatureCache(tmp_path), "r", [1], 50).all()
        assert not told
        assert [path.name for path in tmp_path.glob("*corrupt*")] == ["features.sqlite.corrupt-1"]

    def test_file_replaced_under_an_open_cache(self, tmp_path):
        """Another process moved the file aside, or someone deleted it."""
        with causes() as told, FeatureCache(tmp_path) as cache:
            fill(cache)
            (tmp_path / "features.sqlite").rename(tmp_path / "features.sqlite.corrupt-1")
            cache.put_many("r", digests([1]), make([1], 50))
            assert check(FeatureCache(tmp_path), "r", [1], 50).all()
            shutil.rmtree(tmp_path)
            cache.put_many("r", digests([1]), make([1], 50))
            assert check(FeatureCache(tmp_path), "r", [1], 50).all()
        assert not told

    @needs_fork
    def test_killed_with_pages_already_written(self, tmp_path):
        """A journal is left behind; whoever comes next undoes the half-written batch."""
        fill(FeatureCache(tmp_path))
        code = """
class Deadly(list):
    rounds = 0
    def __iter__(self):
        self.rounds += 1
        for k, item in enumerate(super().__iter__()):
            if self.rounds == 2 and k == 150:
                os.kill(os.getpid(), signal.SIGKILL)
            yield item
keys = Deadly(digest(i) for i in range(200))
FeatureCache(sys.argv[1]).put_many("wide", keys, np.ones((200, 25_088), np.float32))
"""
        process = start(code, tmp_path)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert (tmp_path / "features.sqlite-journal").stat().st_size > 512
        with causes() as told, FeatureCache(tmp_path) as cache:
            assert use(cache) == [24, 24]
            assert cache.verify().bad == 0
        assert not told


class TestRefusal:
    """Files that are not ours to touch."""

    def refuse(self, folder, wording):
        file = folder / "features.sqlite"
        content = file.read_bytes()
        with causes() as told, FeatureCache(folder) as cache:
            assert use(cache) == [0, 0]
            cache.clear()
            cache.verify()
        (message,) = told
        assert wording in message
        assert file.read_bytes() == content
        assert [entry.name for entry in folder.iterdir()] == ["features.sqlite"]

    def test_newer_format(self, sound, tmp_path):
        (tmp_path / "features.sqlite").write_bytes(sound)
        with closing(sqlite3.connect(tmp_path / "features.sqlite")) as connection:
            connection.execute("PRAGMA user_version = 7")
        self.refuse(tmp_path, "has format 7")

    def test_other_database(self, tmp_path):
        with closing(sqlite3.connect(tmp_path / "features.sqlite")) as connection:
            connection.execute("CREATE TABLE bookmarks (address TEXT)")
        self.refuse(tmp_path, "belongs to another program")

    @pytest.mark.parametrize("kind", ["text", "damaged", "short"])
    def test_damaged_file_of_another_program(self, kind, tmp_path):
        """What does not say that it is ours is neither renamed nor removed."""
        file = tmp_path / "features.sqlite"
        if kind == "text":
            file.write_text("precious notes\n" * 500)
        else:
            with closing(sqlite3.connect(file)) as connection, connection:
                connection.execute("CREATE TABLE bookmarks (address TEXT)")
            content = file.read_bytes()
            file.write_bytes(content[:50] if kind == "short" else content[:100] + b"\xff" * 8000)
        self.refuse(tmp_path, "belongs to another program")

    def test_other_program_without_tables(self, tmp_path):
        with closing(sqlite3.connect(tmp_path / "features.sqlite")) as connection:
            connection.execute("PRAGMA application_id = 77")
        self.refuse(tmp_path, "belongs to another program")


class TestDisk:
    def test_file_size_limit(self, tmp_path):
        if sys.platform == "win32":
            pytest.skip("this system has no limit on file sizes")
        code = """
import resource
cache = FeatureCache(sys.argv[1])
cache.put_many("r", [digest(i) for i in range(20)], make(range(20), 1000))
resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, 2**18))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for k in range(1, 6):
        numbers = range(20 * k, 20 * k + 20)
        cache.put_many("r", [digest(i) for i in numbers], make(numbers, 1000))
        assert check(cache, "r", range(20), 1000).all()
    hits = check(cache, "r", range(120), 1000)
assert 20 <= hits.sum() < 120 and hits.sum() % 20 == 0, hits  # whole batches
print(len(caught), caught[0].message)
"""
        printed = finish(start(code, tmp_path))
        assert printed.startswith("1 ")
        assert "ulimit" in printed
        with causes() as told, FeatureCache(tmp_path) as cache:
            assert cache.verify().bad == 0
            assert cache.info().rows >= 20
        assert not told

    def test_full_disk(self, small_disk):
        cache = FeatureCache(small_disk / "cache")
        with causes() as told:
            for k in range(30):
                numbers = range(20 * k, 20 * k + 20)
                cache.put_many("r", digests(numbers), make(numbers, 2000))
                check(cache, "r", numbers, 2000)
        (message,) = told
        assert "disk is full" in message
        with causes() as told:
            assert 20 < check(cache, "r", range(600), 2000).sum() < 600
            cache.clear()
            cache.put_many("r", digests([1]), make([1], 2000))
            assert check(cache, "r", [1], 2000).all()  # room again, and all is well
            assert cache.verify().bad == 0
            cache.close()
        assert not told

    def test_read_only_file_system(self, small_disk):
        with FeatureCache(small_disk) as cache:
            fill(cache)
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
        with causes() as told, FeatureCache(small_disk) as cache:
            for _ in range(2):
                assert all(check(cache, r, NUMBERS, w).all() for r, w in WIDTHS.items())
            assert cache.info().rows == 24
            assert cache.verify().rows == 24
        assert not told  # a read-only cache is good for reading
        with causes() as told, FeatureCache(small_disk) as cache:
            assert use(cache) == [24, 24]
            cache.clear()
            assert cache.info().rows == 24
        (message,) = told
        assert "only read" in message

    def test_read_only_and_damaged(self, small_disk, sound):
        (small_disk / "features.sqlite").write_bytes(sound[:100] + b"garbage" * 1000)
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
        with causes() as told, FeatureCache(small_disk) as cache:
            assert use(cache) == [0, 0]
        (message,) = told
        assert "could not be renamed" in message

    @pytest.mark.skipif(
        not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions are void for root"
    )
    def test_read_only_for_this_user(self, tmp_path):
        with FeatureCache(tmp_path / "cache") as cache:
            fill(cache)
        (tmp_path / "cache" / "features.sqlite").chmod(0o400)
        (tmp_path / "cache").chmod(0o500)
        with causes() as told, FeatureCache(tmp_path / "cache") as cache:
            assert use(cache) == [24, 24]
        assert len(told) == 1
        (tmp_path / "cache").chmod(0o700)

    def test_folder_below_a_file(self, tmp_path):
        (tmp_path / "file").write_text("mine")
        with causes() as told, FeatureCache(tmp_path / "file" / "cache") as cache:
            assert use(cache) == [0, 0]
            assert cache.verify().rows == 0
        assert len(told) == 1
        assert (tmp_path / "file").read_text() == "mine"

    def test_folder_that_cannot_be_made(self):
        if not os.path.isdir("/proc/self"):
            pytest.skip("this system has no /proc, where no one can make a folder")
        with causes() as told, FeatureCache("/proc/self/cache") as cache:
            assert use(cache) == [0, 0]
        assert len(told) == 1

    def test_folder_in_place_of_the_file(self, tmp_path):
        (tmp_path / "features.sqlite").mkdir()
        with causes() as told, FeatureCache(tmp_path) as cache:
            assert use(cache) == [0, 0]
        assert len(told) == 1


class TestLock:
    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch):
        monkeypatch.setattr(database_module, "_PATIENCE", 0.3)

    def test_locked_for_good(self, tmp_path):
        fill(FeatureCache(tmp_path))
        cache = FeatureCache(tmp_path)
        with closing(sqlite3.connect(tmp_path / "features.sqlite")) as other:
            other.execute("BEGIN EXCLUSIVE")
            with causes() as told:
                assert use(cache) == [0, 0]
            (message,) = told
            assert "locked" in message
        with causes() as told:
            assert use(cache) == [24, 24]  # free again
        assert not told

    def test_a_lock_is_waited_for_once(self, tmp_path, monkeypatch):
        waits = []
        fill(FeatureCache(tmp_path))
        cache = FeatureCache(tmp_path)
        connect = sqlite3.connect

        def spy(*args, **kwargs):
            waits.append(kwargs["timeout"])
            return connect(*args, **kwargs)

        with closing(connect(tmp_path / "features.sqlite")) as other:
            other.execute("BEGIN EXCLUSIVE")
            monkeypatch.setattr(sqlite3, "connect", spy)
            with causes():
                use(cache)
        assert waits[0] == 0.3
        assert set(waits[1:]) == {0.0}

    def test_short_locks_are_waited_for(self, tmp_path, monkeypatch):
        monkeypatch.setattr(database_module, "_PATIENCE", 30.0)
        fill(FeatureCache(tmp_path))
        code = """
other = sqlite3.connect(sys.argv[1] + "/features.sqlite", isolation_level=None)
other.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
time.sleep(0.5)
other.execute("COMMIT")
"""
        holder = start(code, tmp_path)
        assert holder.stdout.readline() == "locked\n"
        with causes() as told:
            assert use(FeatureCache(tmp_path)) == [24, 24]
        assert not told
        finish(holder)

    def test_readers_do_not_stop_readers(self, tmp_path):
        fill(FeatureCache(tmp_path))
        with closing(sqlite3.connect(tmp_path / "features.sqlite")) as other:
            other.execute("BEGIN IMMEDIATE")  # a writer before its commit
            with causes() as told, FeatureCache(tmp_path) as cache:
                assert check(cache, "wide", NUMBERS, 1500).all()
            assert not told


class TestWarningsAsErrors:
    def test_raised_once(self, sound, tmp_path):
        file = tmp_path / "features.sqlite"
        file.write_bytes(sound[:100] + b"garbage" * 1000)
        with warnings.catch_warnings(), FeatureCache(tmp_path) as cache:
            warnings.simplefilter("error")
            with pytest.raises(CacheWarning, match="damaged"):
                check(cache, "wide", NUMBERS, 1500)
            assert use(cache) == [0, 24]

    def test_interrupt(self, tmp_path):
        """Ctrl-C in the middle of a batch leaves nothing locked and nothing half done."""

        class Interrupted(list):
            rounds = 0

            def __iter__(self):
                self.rounds += 1
                yield from super().__iter__()
                if self.rounds == 2:
                    raise KeyboardInterrupt

        cache = FeatureCache(tmp_path)
        with causes() as told:
            with pytest.raises(KeyboardInterrupt):
                cache.put_many("r", Interrupted(digests([1])), make([1], 50))
            assert not check(cache, "r", [1], 50).any()
            assert use(FeatureCache(tmp_path)) == [0, 24]
        assert not told
