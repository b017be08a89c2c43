"""A store in memory that is slow, loses replies, has outages, and forgets what wasn't synced when the power fails."""

import io
from contextlib import contextmanager

from patchmint.errors import NotFoundError, StorageError
from patchmint.shards.paths import unit_of_record
from patchmint.storage import Entry, NewFile


class SimulatedStorage:
    """See `patchmint.storage.Storage`.

    Attributes:
        files: path -> bytes.
        records: how often each unit's commit record was written.
        trouble: the share of requests that fail; half of these have been carried out all the same.
        outages: from and to when every request fails.
    """

    uri = "sim://out"
    is_local = False

    def __init__(self, world, files, *, trouble=0.0, latency=0.02, outages=(), syncs=True):
        self.files = dict(files)
        self.records = {}
        self.trouble = trouble
        self.outages = outages
        self._world = world
        self._latency = latency
        self._syncs = syncs
        self._unsynced = set()

    def lose_power(self):
        """Files that weren't synced are empty now."""
        for path in self._unsynced & self.files.keys():
            self.files[path] = b""
        self._unsynced.clear()

    def read(self, path):
        self._request()
        return self._find(path)

    def read_range(self, path, start, length):
        self._request()
        data = self._find(path)[start : start + length]
        if len(data) < length:
            raise StorageError(f"{path} ends before")
        return data

    def size(self, path):
        self._request()
        return len(self._find(path))

    def exists(self, path):
        self._request()
        return path in self.files

    def list(self, prefix=""):
        self._request()
        folder = f"{prefix.rstrip('/')}/" if prefix else ""
        yield from [Entry(path, len(data)) for path, data in sorted(self.files.items()) if path.startswith(folder)]

    def open(self, path):
        self._request()
        return io.BytesIO(self._find(path))

    def write(self, path, data):
        with self._change():
            self._put(path, data)

    def create(self, path, data):
        made = [False]

        def act():
            if path not in self.files:
                made[0] = True
                self._put(path, data)

        with self._change(late=act):
            act()
        return made[0]

    @contextmanager
    def new_file(self, path):
        sink = io.BytesIO()
        yield NewFile(path, sink, path)
        with self._change():
            self.files[path] = sink.getvalue()
            if not self._syncs:
                self._unsynced.add(path)

    def move(self, source, target):
        with self._change():
            self.files[target] = self._find(source)
            del self.files[source]
            if source in self._unsynced:
                self._unsynced.add(target)

    def delete(self, paths):
        paths = list(paths)
        if paths:
            with self._change():
                for path in paths:
                    self.files.pop(path, None)

    def delete_temporary(self):
        """There are none."""

    def delete_empty_folders(self, folder):
        """There are none."""

    def _put(self, path, data):
        self.files[path] = data
        if (unit := unit_of_record(path)) is not None:
            self.records[unit] = self.records.get(unit, 0) + 1

    def _find(self, path):
        if path not in self.files:
            raise NotFoundError(f"{path} isn't there")
        return self.files[path]

    @contextmanager
    def _change(self, late=None):
        """A request that changes something. Where it fails, it may have been carried out, or be carried out later."""
        befalls = self._befalls()
        if befalls == "refused":
            raise StorageError("the request failed")
        if befalls == "late" and late is not None:
            self._world.start("a late request", late, after=self._world.random.uniform(1, 30))
            raise StorageError("the request seems to have failed")
        yield
        if befalls is not None:
            raise StorageError("the reply was lost")

    def _request(self):
        if self._befalls() is not None:
            raise StorageError("the request failed")

    def _befalls(self):
        world = self._world
        world.sleep(world.random.expovariate(1 / self._latency))
        if any(start <= world.now < end for start, end in self.outages):
            return "refused"
        if world.random.random() < self.trouble:
            return world.random.choice(["refused", "lost", "late"])
        return None
