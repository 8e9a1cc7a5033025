"""Scores on disk, so that what was scored once is not asked for again: in later epochs, runs and processes."""

import hashlib
import json
import sqlite3
import weakref
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from ..errors import CacheError


# Says that a database is one of these: "xtok".
_APPLICATION, _VERSION = 0x78746F6B, 1
# With row ids: without them each row of more than a quarter of a page takes a page of its own.
_TABLE = "CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, logps BLOB NOT NULL)"


class ScoreCache:
    """Log-probs in one SQLite file, which several processes and threads may use at the same time.

    The file must be on a disk of this machine: what SQLite needs for several processes does not work on most network
    file systems.

    Args:
        path: The file; it and its folder are made if they are not there.
        identity: What the scores depend on beside the ids. Scores of another identity are not found.

    Raises:
        CacheError: If the file cannot be used.
    """

    def __init__(self, path: str | Path, identity: Mapping[str, str]):
        self._path = Path(path).absolute()
        self._identity = hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).digest()
        self._lock = Lock()
        with self._explaining():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Several processes may wait for one that writes.
            self._database = sqlite3.connect(self._path, timeout=60.0, isolation_level=None, check_same_thread=False)
            weakref.finalize(self, self._database.close)
            self._prepare()

    def key(self, ids: Sequence[int], start: int) -> bytes:
        """By which the log-probs of `ids[start:]` are found."""
        return hashlib.sha256(self._identity + array("q", [start, *ids]).tobytes()).digest()

    def read(self, keys: Iterable[bytes]) -> dict[bytes, list[float]]:
        """The log-probs of those that are there.

        Raises:
            CacheError: If the file is damaged.
        """
        found: dict[bytes, list[float]] = {}
        with self._explaining(), self._lock:
            for key in keys:
                row = self._database.execute("SELECT logps FROM scores WHERE key = ?", (key,)).fetchone()
                if row is not None:
                    values = array("f")
                    values.frombytes(row[0])
                    found[key] = values.tolist()
        return found

    def write(self, scores: Mapping[bytes, Sequence[float]]) -> None:
        """Keep log-probs, in single precision; all of them or, if the process is killed, none.

        Raises:
            CacheError: If the file is damaged, or the disk is full.
        """
        rows = [(key, array("f", values).tobytes()) for key, values in scores.items()]
        with self._explaining(), self._lock, self._transaction():
            self._database.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", rows)

    def _prepare(self) -> None:
        # Processes that start together find it empty or whole.
        with self._transaction():
            (application,) = self._database.execute("PRAGMA application_id").fetchone()
            (tables,) = self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            if tables and (application, version) != (_APPLICATION, _VERSION):
                raise CacheError(
                    f"{str(self._path)!r} is a database, but not a cache of scores of this version. Give "
                    "`teacher_score_cache` another path, or delete the file."
                )
            self._database.execute(f"PRAGMA application_id = {_APPLICATION}")
            self._database.execute(f"PRAGMA user_version = {_VERSION}")
            self._database.execute(_TABLE)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            # Where the disk is full, it is rolled back already.
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    @contextmanager
    def _explaining(self):
        try:
            yield
        except (sqlite3.Error, OSError, TypeError, ValueError) as error:
            raise CacheError(
                f"The cache of scores {str(self._path)!r} cannot be used ({type(error).__name__}: {error}). If the "
                "file is damaged, delete it (with a file beside it that ends in -journal): all scores can be "
                "asked for again. If not, check the folder, its permissions and the space on its disk."
            ) from error
