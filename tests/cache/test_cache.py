"""The feature cache at work: what goes in comes out, for everyone, within its room."""

import copy
import inspect
import json
import os
import pickle
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import joblib
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sklearn.base import BaseEstimator, clone

import sklearn_cnnfeat._cache.feature_cache as cache_module
from sklearn_cnnfeat._cache import FeatureCache
from sklearn_cnnfeat._cache.recent import RecentRows
from sklearn_cnnfeat._home import home_folder, make_private_folder
from sklearn_cnnfeat.exceptions import CacheWarning

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def digest(i):
    return int(i).to_bytes(32, "little")


def make(numbers, width):
    """Rows that anyone can compute again from their numbers."""
    return np.stack([np.random.default_rng(i).random(width, dtype=np.float32) for i in numbers])


def check(cache, recipe, numbers, width):
    """Read rows; each must be right or left alone. Return which are there."""
    out = np.full((len(numbers), width), -1, dtype=np.float32)
    hits = cache.get_many(recipe, [digest(i) for i in numbers], out)
    assert (out[hits] == make(numbers, width)[hits]).all(), "wrong row"
    assert (out[~hits] == -1).all(), "a miss was written to"
    return hits


CHILD = """
import json, os, random, signal, sqlite3, sys, threading, time, warnings
from pathlib import Path
import numpy as np
from sklearn_cnnfeat._cache import FeatureCache
from sklearn_cnnfeat.exceptions import CacheWarning
""" + "".join(map(inspect.getsource, (digest, make, check)))


def start(code, *arguments, **options):
    """Start a Python process that runs `code` after the functions above."""
    command = [sys.executable, "-c", CHILD + code, *map(str, arguments)]
    root = str(Path(cache_module.__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, *sys.path])}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


def finish(process):
    """Return what a process printed; it must have ended well."""
    try:
        printed, errors = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    return printed


@pytest.fixture
def cache(tmp_path):
    with FeatureCache(tmp_path / "cache") as it:
        yield it


@pytest.fixture(autouse=True)
def no_cache_warnings():
    """A cache that is well says nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", CacheWarning)
        yield


def digests(numbers):
    return [digest(i) for i in numbers]


class TestRows:
    @pytest.mark.parametrize("width", [0, 1, 512, 1024, 25_088])
    def test_bits_come_back(self, cache, width):
        bits = np.random.default_rng(0).integers(0, 2**32, (7, width), dtype=np.uint32)
        rows = bits.view(np.float32)  # all kinds of NaN, infinities, denormals among them
        cache.put_many("r", digests(range(7)), rows)
        out = np.zeros_like(rows)
        assert cache.get_many("r", digests(range(7)), out).all()
        assert (out.view(np.uint32) == bits).all()

    def test_nan_rows(self, cache):
        row = np.array([[0x7FC00000, 0xFFC00001, 0x7F800001, 0x80000000]], dtype=np.uint32)
        cache.put_many("r", digests([1]), row.view(np.float32))
        out = np.zeros((1, 4), dtype=np.float32)
        assert cache.get_many("r", digests([1]), out).all()
        assert (out.view(np.uint32) == row).all()

    def test_misses_are_left_alone(self, cache):
        cache.put_many("r", digests([1, 3]), make([1, 3], 5))
        assert check(cache, "r", [0, 1, 2, 3, 1], 5).tolist() == [False, True, False, True, True]

    def test_recipes_do_not_collide(self, cache):
        cache.put_many("a", digests([1]), make([1], 5))
        cache.put_many("b", digests([1]), make([2], 5))
        out = np.zeros((1, 5), dtype=np.float32)
        for recipe, number in (("a", 1), ("b", 2)):
            assert cache.get_many(recipe, digests([1]), out).all()
            assert (out == make([number], 5)).all()
        assert not cache.get_many("c", digests([1]), out).any()

    def test_put_replaces(self, cache):
        cache.put_many("r", digests([1]), make([2], 5))
        cache.put_many("r", digests([1]), make([1], 5))
        assert check(cache, "r", [1], 5).all()
        assert cache.info().rows == 1

    def test_strided_arrays(self, cache):
        wide = np.zeros((3, 20), dtype=np.float32)
        wide[:, ::4] = make(range(3), 5)
        cache.put_many("r", digests(range(3)), wide[:, ::4])
        out = np.zeros((3, 20), dtype=np.float32)
        assert cache.get_many("r", digests(range(3)), out[:, ::4]).all()
        assert (out == wide).all()

    def test_many_are_looked_up_together(self, cache):
        """More rows than a statement has room for, some twice, some missing."""
        stored = range(0, 3000, 2)
        cache.put_many("r", digests(stored), make(stored, 5))
        wanted = [*range(2500), *range(0, 2500, 100)]
        statements = []
        cache._database.run(lambda connection: connection.set_trace_callback(statements.append))
        for _ in range(2):
            hits = check(cache, "r", wanted, 5)
            assert hits.tolist() == [i % 2 == 0 for i in wanted]
        found = cache.contains_many("r", [digest(i) for i in wanted])
        assert found.tolist() == hits.tolist()
        # 5 each for 2,500 rows, twice and less: those found are in memory the second time.
        assert sum(" FROM rows " in statement for statement in statements) == 5 + 3 + 5

    def test_rows_in_memory_are_those_of_the_file(self, tmp_path):
        """What anybody does to the file is noticed, although rows are kept in memory."""
        with FeatureCache(tmp_path) as cache, FeatureCache(tmp_path) as other:
            cache.put_many("r", digests(range(4)), make(range(4), 5))
            assert check(cache, "r", range(4), 5).all()
            assert check(cache, "r", range(4), 5).all()
            with pytest.warns(CacheWarning, match="of another width"):
                assert not check(cache, "r", range(4), 6).any()
            cache.put_many("r", digests([1]), make([1], 6))
            assert check(cache, "r", [1], 6).all()
            assert check(cache, "r", range(4), 5).tolist() == [True, False, True, True]
            other.clear()
            assert not check(cache, "r", range(4), 5).any()
            cache.put_many("r", digests(range(4)), make(range(4), 5))
            assert check(cache, "r", range(4), 5).all()
            cache.clear("r")
            assert not check(cache, "r", range(4), 5).any()
            cache.put_many("r", digests(range(4)), make(range(4), 5))
            assert check(cache, "r", range(4), 5).all()
            (tmp_path / "features.sqlite").unlink()
            assert not check(cache, "r", range(4), 5).any()

    def test_memory_is_bounded(self):
        recent = RecentRows(100)
        rows = {i: np.full(10, i, np.float32) for i in range(4)}
        for i in (0, 1):
            recent.add(i, rows[i])
        assert (recent.get(0) == 0).all()
        recent.add(2, rows[2])  # 1 was used longest ago
        assert [recent.get(i) is not None for i in range(3)] == [True, False, True]
        recent.add(3, np.zeros(26, np.float32))  # larger than all together
        assert recent.get(3) is None and recent.get(0) is not None
        rows[0][:] = 9
        assert (recent.get(0) == 0).all()
        recent.discard(0)
        recent.add(3, rows[3])
        assert [recent.get(i) is not None for i in range(4)] == [False, False, True, True]

    def test_contains(self, cache):
        cache.put_many("r", digests([1]), make([1], 5))
        assert cache.contains_many("r", digests([0, 1])).tolist() == [False, True]
        assert cache.contains_many("s", digests([1])).tolist() == [False]

    def test_nothing(self, cache):
        empty = np.zeros((0, 5), dtype=np.float32)
        cache.put_many("r", [], empty)
        assert cache.get_many("r", [], empty).shape == (0,)
        assert cache.contains_many("r", []).shape == (0,)

    @pytest.mark.parametrize(
        ("recipe", "keys", "rows", "error"),
        [
            ("r", ["1" * 32], np.zeros((1, 2), np.float32), ValueError),
            ("r", [b"short"], np.zeros((1, 2), np.float32), ValueError),
            ("r", [b"1" * 32], np.zeros((1, 2)), ValueError),
            ("r", [b"1" * 32], np.zeros((2, 2), np.float32), ValueError),
            ("r", [b"1" * 32], np.zeros(2, np.float32), ValueError),
            (b"r", [b"1" * 32], np.zeros((1, 2), np.float32), TypeError),
        ],
    )
    def test_mistakes_of_the_caller(self, cache, recipe, keys, rows, error):
        with pytest.raises(error):
            cache.put_many(recipe, keys, rows)
        with pytest.raises(error):
            cache.get_many(recipe, keys, rows)


class TestSettings:
    def test_copies(self, cache):
        class Holder(BaseEstimator):
            def __init__(self, cache=None):
                self.cache = cache

        assert clone(Holder(cache)).cache is cache
        assert copy.copy(cache) is cache
        assert copy.deepcopy([cache])[0] is cache
        assert Holder(cache).get_params()["cache"] is cache
        assert "FeatureCache(" in repr(Holder(cache))

    def test_pickle(self, cache):
        cache.put_many("r", digests([1]), make([1], 5))
        other = pickle.loads(pickle.dumps(cache))
        assert other == cache
        assert hash(other) == hash(cache)
        assert check(other, "r", [1], 5).all()
        assert len(pickle.dumps(cache)) < 500

    def test_repr_and_equality(self, cache):
        assert eval(repr(cache)) == cache
        assert cache != FeatureCache(cache.path, max_bytes=2**20)
        assert cache != FeatureCache(cache.path / "other")
        assert cache != 1

    def test_nothing_happens_before_use(self, tmp_path):
        repr(FeatureCache(tmp_path / "cache"))
        assert not (tmp_path / "cache").exists()

    def test_default_path(self, tmp_path, monkeypatch):
        monkeypatch.setenv("SKLEARN_CNNFEAT_HOME", str(tmp_path / "home"))
        assert home_folder() == tmp_path / "home"
        assert FeatureCache().path == tmp_path / "home" / "features"
        monkeypatch.setenv("SKLEARN_CNNFEAT_HOME", "")
        assert home_folder().is_absolute()
        assert "sklearn-cnnfeat" in str(home_folder())

    def test_no_home(self, monkeypatch):
        monkeypatch.setattr("platformdirs.user_cache_dir", lambda *_, **__: "~nobody-here/x")
        monkeypatch.delenv("SKLEARN_CNNFEAT_HOME", raising=False)
        with pytest.raises(RuntimeError, match="SKLEARN_CNNFEAT_HOME"):
            home_folder()

    def test_relative_path_is_fixed(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        cache = FeatureCache("here")
        monkeypatch.chdir("/")
        assert cache.path == tmp_path / "here"

    def test_path_of_a_file(self, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(ValueError, match=r"must be a folder.*notes\.txt"):
            FeatureCache(tmp_path / "notes.txt")

    def test_max_bytes(self, tmp_path):
        with pytest.raises(ValueError, match="max_bytes must be at least"):
            FeatureCache(tmp_path, max_bytes=0)
        with pytest.raises(TypeError):
            FeatureCache(tmp_path, max_bytes="1GB")

    @pytest.mark.skipif(os.name != "posix", reason="file modes")
    def test_private(self, tmp_path):
        cache = FeatureCache(tmp_path / "a" / "b")
        cache.put_many("r", digests([1]), make([1], 5))
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
        (file,) = (tmp_path / "a" / "b").iterdir()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600

    def test_shared_folder_keeps_its_mode(self, tmp_path):
        tmp_path.chmod(0o755)
        make_private_folder(tmp_path)
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


class TestRoom:
    def fill(self, cache, numbers, width=1000, recipe="r"):
        for i in numbers:
            cache.put_many(recipe, digests([i]), make([i], width))

    @pytest.mark.parametrize("width", [3, 512, 1024, 25_088])
    @pytest.mark.sampled(1)
    def test_limit_holds(self, tmp_path, width):
        cache = FeatureCache(tmp_path, max_bytes=2**20)
        batch = max(1, 40_000 // width // 4)
        rows = np.ones((batch, width), dtype=np.float32)
        for i in range(60):
            cache.put_many("r", digests(range(i * batch, (i + 1) * batch)), rows)
            info = cache.info()
            assert info.bytes <= 2**20
            assert info.file_bytes <= 2**20
        last = digests(range(59 * batch, 60 * batch))
        assert cache.get_many("r", last, np.zeros_like(rows)).all()

    def test_oldest_leave_first(self, tmp_path, monkeypatch):
        clock = SimpleNamespace(time=lambda: now)
        monkeypatch.setattr(cache_module, "time", clock)
        cache = FeatureCache(tmp_path, max_bytes=2**20)
        now = 1e9
        self.fill(cache, range(150))
        now += 3600
        assert check(cache, "r", range(20), 1000).all()  # used again
        now += 3600
        self.fill(cache, range(1000, 1120))
        assert cache.contains_many("r", digests([*range(20), *range(1000, 1120)])).all()
        left = cache.contains_many("r", digests(range(20, 150)))
        gone = 130 - left.sum()
        assert 10 < gone < 100
        assert not left[:gone].any()

    def test_reads_write_seldom(self, tmp_path, monkeypatch):
        monkeypatch.setattr(cache_module, "time", SimpleNamespace(time=lambda: now))
        cache = FeatureCache(tmp_path)
        now = 1e9
        self.fill(cache, range(10))
        file = tmp_path / "features.sqlite"
        content = file.read_bytes()
        now += 60
        check(cache, "r", range(10), 1000)
        assert file.read_bytes() == content  # used a minute ago: not worth a write
        now += 3600
        check(cache, "r", range(5), 1000)
        assert file.read_bytes() != content
        content = file.read_bytes()
        now += 0.5
        check(cache, "r", range(5, 10), 1000)
        assert file.read_bytes() == content  # kept for later
        cache.close()
        assert file.read_bytes() != content
        info = cache.info()
        assert info.oldest.timestamp() == info.newest.timestamp() == int(now)

    @pytest.mark.slow
    def test_smaller_limit_shrinks_the_file(self, tmp_path):
        with FeatureCache(tmp_path) as large:
            self.fill(large, range(800))
            assert large.info().file_bytes > 3 * 2**20
        small = FeatureCache(tmp_path, max_bytes=2**20)
        self.fill(small, [900])
        assert small.info().file_bytes <= 2**20
        assert check(small, "r", range(901), 1000)[900]
        assert small.verify().bad == 0

    def test_too_large_a_row(self, tmp_path):
        cache = FeatureCache(tmp_path, max_bytes=2**20)
        self.fill(cache, range(3))
        with pytest.warns(CacheWarning, match="max_bytes") as caught:
            self.fill(cache, range(10, 13), width=2**18)
        warnings.simplefilter("error")
        self.fill(cache, range(10, 13), width=2**18)  # told once
        assert len(caught) == 1
        assert cache.info().rows == 3

    def test_info(self, cache):
        assert cache.info().rows == 0
        self.fill(cache, range(5))
        self.fill(cache, range(3), recipe="s")
        info = cache.info()
        assert info.path == cache.path
        assert info.rows == 8
        assert info.recipes == {"r": 5, "s": 3}
        assert 8 * 4000 < info.bytes <= info.file_bytes < info.max_bytes
        assert info.oldest <= info.newest
        assert "8 rows of 2 recipes" in repr(info)

    def test_clear(self, cache):
        self.fill(cache, range(300))
        self.fill(cache, range(10), recipe="s")
        full = cache.info().file_bytes
        cache.clear("r")
        assert cache.info().recipes == {"s": 10}
        assert cache.info().file_bytes < full / 10
        assert check(cache, "s", range(10), 1000).all()
        cache.clear()
        assert cache.info().rows == 0
        assert cache.info().file_bytes <= 2**16
        cache.clear("never there")

    def test_verify_of_sound_rows(self, cache):
        self.fill(cache, range(5))
        report = cache.verify()
        assert (report.rows, report.bad) == (5, 0)


class TestManyUsers:
    def test_threads(self, cache):
        def work(k):
            numbers = range(k * 40, k * 40 + 80)  # overlapping with the neighbours'
            for i in numbers:
                cache.put_many("r", digests([i]), make([i], 300))
            hits.append(check(cache, "r", numbers, 300).all())

        hits = []
        threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert hits == [True] * 6
        assert cache.info().rows == 280

    def test_four_processes(self, tmp_path):
        code = """
folder, me = sys.argv[1], int(sys.argv[2])
warnings.simplefilter("error", CacheWarning)
cache = FeatureCache(folder)
mine = np.random.default_rng(me).permutation(300)
for first in range(0, 300, 20):
    part = mine[first:first + 20]
    cache.put_many("r", [digest(i) for i in part], make(part, 700))
    check(cache, "r", range(300), 700)
assert check(cache, "r", mine, 700).all()
"""
        # All begin without a file: one of them makes it.
        processes = [start(code, tmp_path / "cache", me) for me in range(4)]
        for process in processes:
            finish(process)
        report = FeatureCache(tmp_path / "cache").verify()
        assert (report.rows, report.bad) == (300, 0)
        assert [file.name for file in (tmp_path / "cache").iterdir()] == ["features.sqlite"]

    def test_four_processes_with_little_room(self, tmp_path):
        code = """
warnings.simplefilter("error", CacheWarning)
cache = FeatureCache(sys.argv[1], max_bytes=2**20)
rng = np.random.default_rng(int(sys.argv[2]))
for _ in range(30):
    part = rng.integers(0, 500, 20)
    cache.put_many("r", [digest(i) for i in part], make(part, 1000))
    check(cache, "r", rng.integers(0, 500, 50), 1000)
    assert cache.info().bytes <= 2**20
"""
        for process in [start(code, tmp_path, me) for me in range(4)]:
            finish(process)
        assert FeatureCache(tmp_path).verify().bad == 0

    def test_loky(self, cache):
        cache.put_many("r", digests(range(4)), make(range(4), 50))
        tasks = (joblib.delayed(_in_worker)(cache, i) for i in range(8))
        assert joblib.Parallel(n_jobs=2, backend="loky")(tasks) == [True] * 4 + [False] * 4
        assert cache.contains_many("r", digests(range(8))).all()

    @needs_fork
    def test_after_fork(self, tmp_path):
        code = """
warnings.simplefilter("error", CacheWarning)
cache = FeatureCache(sys.argv[1])
cache.put_many("r", [digest(i) for i in range(50)], make(range(50), 100))
stop = False
def keep_reading():
    while not stop:
        assert check(cache, "r", range(50), 100).all()
thread = threading.Thread(target=keep_reading)  # forks fall into the middle of its reads
thread.start()
for k in range(10):
    if (child := os.fork()) == 0:
        status = 1
        try:
            assert check(cache, "r", range(50), 100).all()
            cache.put_many("r", [digest(100 + k)], make([100 + k], 100))
            status = 0
        finally:
            os._exit(status)
    cache.put_many("r", [digest(200 + k)], make([200 + k], 100))
    assert os.waitpid(child, 0)[1] == 0
stop = True
thread.join()
assert check(cache, "r", [*range(50), *range(100, 110), *range(200, 210)], 100).all()
"""
        finish(start(code, tmp_path))

    @needs_fork
    @pytest.mark.parametrize("n_rounds", [8, pytest.param(40, marks=pytest.mark.slow)])
    def test_killed_writers(self, tmp_path, n_rounds):
        code = """
folder, n_rounds = sys.argv[1], int(sys.argv[2])
random.seed(0)
known = 0
for k in range(n_rounds):
    started = []
    for writer in (0, 1):
        receive, send = os.pipe()
        if (pid := os.fork()) == 0:
            cache = FeatureCache(folder)
            for batch in range(1000):
                first = 1_000_000 * writer + 10_000 * k + 8 * batch
                numbers = range(first, first + 8)
                width = (500, 25_088)[writer]
                cache.put_many(str(width), [digest(i) for i in numbers], make(numbers, width))
                os.write(send, first.to_bytes(4, "little"))
        os.close(send)
        # Every other pair is killed once it has written something, however slow the machine is.
        told = os.read(receive, 4) if k % 2 else b""
        started.append((pid, receive, told))
    time.sleep(random.uniform(0.0, 0.06))
    for pid, _, _ in started:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    warnings.simplefilter("error", CacheWarning)
    cache = FeatureCache(folder)
    for (pid, receive, told), width in zip(started, (500, 25_088)):
        told += os.read(receive, 2**16)
        os.close(receive)
        for at in range(0, len(told), 4):
            first = int.from_bytes(told[at:at + 4], "little")
            assert check(cache, str(width), range(first, first + 8), width).all(), "lost"
            known += 8
    cache.close()
report = FeatureCache(folder).verify()
assert report.bad == 0 and report.rows >= known > 2 * n_rounds, (report, known)
"""
        finish(start(code, tmp_path, n_rounds))


def _in_worker(cache, i):
    hit = check(cache, "r", [i], 50).all()
    cache.put_many("r", digests([i]), make([i], 50))
    return bool(hit)


CRASHER = """
for line in sys.stdin:
    folder, recipe, numbers, width, dies_at = json.loads(line)
    if (pid := os.fork()) == 0:
        class Deadly(list):
            rounds = 0
            def __iter__(self):
                self.rounds += 1  # the first time round they are only checked
                for k, item in enumerate(super().__iter__()):
                    if self.rounds == 2 and k == dies_at:
                        os.kill(os.getpid(), signal.SIGKILL)
                    yield item
        keys = Deadly([digest(i) for i in numbers])
        FeatureCache(folder).put_many(recipe, keys, np.ones((len(numbers), width), np.float32))
        os._exit(0)
    print(os.WTERMSIG(os.waitpid(pid, 0)[1]), flush=True)
"""
RECIPES = st.sampled_from(["vgg16", "resnet50"])
NUMBERS = st.lists(st.integers(0, 30), min_size=1, max_size=8, unique=True)
WIDTH = 3000


class CacheMachine(RuleBasedStateMachine):
    """The cache against a dictionary; with little room it may know less, never otherwise."""

    max_bytes = 10**9

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.open()
        self.model = {}
        self.written = 0

    @initialize()
    def open(self):
        self.cache = FeatureCache(self.folder.name, max_bytes=self.max_bytes)

    def expected(self, recipe, numbers):
        return [(recipe, i) in self.model for i in numbers]

    @rule(recipe=RECIPES, numbers=NUMBERS)
    def put(self, recipe, numbers):
        self.written += 1
        rows = make([1000 * self.written + i for i in numbers], WIDTH)
        self.cache.put_many(recipe, digests(numbers), rows)
        self.model |= {(recipe, i): row for i, row in zip(numbers, rows, strict=True)}
        assert self.cache.contains_many(recipe, digests(numbers)).all()

    @rule(recipe=RECIPES, numbers=NUMBERS)
    def get(self, recipe, numbers):
        out = np.full((len(numbers), WIDTH), -1, dtype=np.float32)
        hits = self.cache.get_many(recipe, digests(numbers), out)
        for number, row, hit in zip(numbers, out, hits, strict=True):
            assert (row == (self.model[recipe, number] if hit else -1)).all()
        self.compare(hits, self.expected(recipe, numbers))

    def compare(self, hits, expected):
        assert list(hits) == expected

    @rule(recipe=RECIPES)
    def clear(self, recipe):
        self.cache.clear(recipe)
        self.model = {key: row for key, row in self.model.items() if key[0] != recipe}

    @rule()
    def reopen(self):
        self.cache.close()
        self.cache = pickle.loads(pickle.dumps(self.cache))

    @rule()
    def second_user(self):
        self.cache = FeatureCache(self.folder.name, max_bytes=self.max_bytes)

    @precondition(lambda _: hasattr(os, "fork"))
    @rule(recipe=RECIPES, numbers=NUMBERS, large=st.booleans(), share=st.floats(0, 0.99))
    def crash(self, recipe, numbers, large, share):
        if large:  # more than SQLite holds back: pages reach the file before the death
            numbers = [*numbers, *range(100, 300)]
        job = self.cache.path, recipe, numbers, WIDTH, int(share * len(numbers))
        print(json.dumps([str(job[0]), *job[1:]]), file=self.crasher.stdin, flush=True)
        assert self.crasher.stdout.readline().strip() == str(int(signal.SIGKILL))

    @rule()
    def verify(self):
        assert self.cache.verify().bad == 0

    @invariant()
    def within_room(self):
        assert self.cache.info().bytes <= self.max_bytes

    def teardown(self):
        self.cache.close()
        self.folder.cleanup()


class CrampedCacheMachine(CacheMachine):
    """The same in a megabyte, where rows have to leave."""

    max_bytes = 2**20

    def compare(self, hits, expected):
        assert all(known for hit, known in zip(hits, expected, strict=True) if hit)

    @rule(recipe=RECIPES, first=st.integers(0, 5))
    def put_many(self, recipe, first):
        self.put(recipe, range(5 * first, 5 * first + 60))


@needs_fork
@pytest.mark.parametrize("machine", [CacheMachine, CrampedCacheMachine])
def test_against_a_dictionary(machine):
    process = start(CRASHER, stdin=subprocess.PIPE)
    machine.crasher = process
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=30,
                stateful_step_count=25,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        process.communicate()
