"""A finished data set to the Hugging Face Hub: what isn't there yet is sent, in commits of some files.

A data set on the Hub counts as finished from the commit that brings dataset.json, which is the last one. If the
repository holds another state of it, the first commit takes its dataset.json away.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from patchmint.datasets.columns import finished_columns
from patchmint.datasets.dataset import Dataset, open_dataset
from patchmint.datasets.ledger import Ledger
from patchmint.errors import InputError, PatchmintError, ShardError, StorageError
from patchmint.jobs.card import PICTURES, licence_of, make_card
from patchmint.jobs.progress import say
from patchmint.shards.manifest import Manifest, read_manifest
from patchmint.shards.paths import (
    COLUMNS,
    COMMITS,
    MANIFEST_PATH,
    PLAN_PATH,
    PUBLISHED,
    SHARDS_PATH,
    plan_path,
    record_path,
)
from patchmint.shards.readme import README, is_ours, read_readme
from patchmint.storage import Storage, open_storage, uri_of
from patchmint.storage.failures import explain_hub, explain_place, is_passing
from patchmint.storage.hub import HubAddress, HubStorage, connect, explained
from patchmint.storage.local import LocalStorage

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, RepoFile

_Value = TypeVar("_Value")
_COMMIT_FILES = 100
_COMMIT_BYTES = 5 << 30
_PAUSES = (1.0, 5.0, 20.0, 60.0, 180.0)
"""Seconds before a commit that failed is tried again. The Hub allows so many an hour."""
_ROOMS = (*(f"{room}/" for room in PUBLISHED), f"{COMMITS}/", f"{COLUMNS}/", "plan/", f"{PICTURES}/")
_LAST = (SHARDS_PATH, README, MANIFEST_PATH)


@dataclass(frozen=True)
class _File:
    """A file of the data set, or one that is made for the Hub.

    Attributes:
        path: in both.
        size: bytes.
        sha256: in hex; "" where it isn't known without reading the file.
        data: all of it; None: it lies in the data set's storage.
    """

    path: str
    size: int
    sha256: str = ""
    data: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class PushReport:
    """What was sent, or what would be.

    Attributes:
        uri: of the repository.
        url: its page.
        commit: the last one; "" where the repository isn't there yet.
        files, bytes: sent in this run.
        present: files that were there already.
        deleted: paths of an earlier state that were taken away.
        card: whether README.md is patchmint's; False: somebody edited it, and it is kept.
    """

    uri: str
    url: str
    commit: str
    files: int
    bytes: int
    present: int
    deleted: tuple[str, ...]
    card: bool


def push(
    dataset: str, uri: str, *, private: bool = False, licence: str = "", replace: bool = False, dry_run: bool = False
) -> PushReport:
    """Bring a finished data set to the Hub, and say on stderr how far it is; the same call resumes.

    Args:
        dataset: its folder or store.
        uri: `hf://datasets/ORG/NAME`; the repository is made if there is none.
        private: make it private. One that is there stays as it is.
        licence: for the card, as the Hub names it; "": that of the card which is there, if any.
        replace: the repository may hold another data set, whose files are taken away.
        dry_run: send nothing.

    Raises:
        InputError: it isn't finished, it isn't complete, or the repository holds another data set.
        ShardError: it is damaged.
        StorageError: it can't be read, or the Hub refuses.
    """
    from huggingface_hub.utils import disable_progress_bars

    address = HubAddress.parse(uri)
    if address.revision or address.folder:
        raise InputError(f"{uri}: a data set fills the main branch of a repository; give hf://datasets/ORG/NAME")
    opened, manifest = _finished(dataset)
    files = _files(opened.storage, manifest)
    for name in finished_columns(opened.storage):
        column = open_storage(uri_of(opened.storage, f"{COLUMNS}/{name}"))
        for file in _files(column, read_manifest(column)).values():
            path = f"{COLUMNS}/{name}/{file.path}"
            files[path] = _File(path, file.size, file.sha256)
    target = _Target(address.repo, uri)
    target.find()
    plan = files[PLAN_PATH]
    occupied = next((path for path in sorted(target.files) if path.startswith((*_ROOMS, MANIFEST_PATH))), None)
    if occupied and not target.has(plan, opened.storage) and not replace:
        raise InputError(
            f"{uri} holds {occupied}, and not the plan of {dataset}: another data set; push to another repository, or "
            "take its files away with --replace"
        )
    past = target.read(README) if README in target.files else b""
    made = make_card(opened, manifest, address.repo, licence or licence_of(past))
    if not is_ours(own := read_readme(opened.storage)):
        made[README] = own
    edited = not is_ours(past)
    if edited:
        made.pop(README)
    card = {path: _File(path, len(data), hashlib.sha256(data).hexdigest(), data) for path, data in made.items()}
    work = _Work(opened.storage, _in_order(plan, [*files.values(), *card.values()]))
    todo = work.todo(target)
    stale = work.stale(target)
    if not dry_run:
        if not sys.stderr.isatty():
            disable_progress_bars()
        target.make(private=private)
        work.send(target)
    return PushReport(
        uri=uri,
        url=f"{target.api.endpoint}/datasets/{address.repo}",
        commit=target.head,
        files=len(todo),
        bytes=sum(file.size for file in todo),
        present=len(work.files) - len(todo),
        deleted=tuple(stale),
        card=not edited,
    )


def _finished(uri: str) -> tuple[Dataset, Manifest]:
    dataset = open_dataset(uri, columns=())
    if not dataset.finished or dataset.manifest is None or uri.endswith(".tar"):
        raise InputError(f"{uri} isn't a finished data set; run its build's command again, then push it")
    if not dataset.samples:
        raise InputError(f"{uri} holds no samples; there is nothing to push")
    return dataset, dataset.manifest


def _files(storage: Storage, manifest: Manifest) -> dict[str, _File]:
    """All files of a finished data set; `runs/` stays: it tells of machines and times.

    Raises:
        InputError: a file isn't there, or not as its record says.
    """
    ledger = Ledger.read(storage)
    if len(ledger.records) != manifest.totals.units:
        raise InputError(
            f"{storage.uri} has {len(ledger.records)} of {manifest.totals.units} commit records; "
            f"push the folder in which it was built, whole"
        )
    known = {path: file for record in ledger.records.values() for path, file in record.files.items()}
    lone = {MANIFEST_PATH, SHARDS_PATH, *(plan_path(number) for number in range(len(ledger.plans)))}
    lone |= {record_path(unit) for unit in ledger.records}
    found = {}
    for entry in storage.list():
        record = known.get(entry.path)
        if record is not None and record.size != entry.size:
            raise InputError(
                f"{entry.path} in {storage.uri} has {entry.size} bytes, its record says {record.size}; "
                f"run: patchmint inspect verify {storage.uri}"
            )
        if record is not None or entry.path in lone or entry.path.startswith("plan/"):
            found[entry.path] = _File(entry.path, entry.size, record.sha256 if record is not None else "")
    missing = sorted((known.keys() | lone) - found.keys())
    if missing:
        raise InputError(f"{missing[0]} isn't in {storage.uri}; run: patchmint inspect verify {storage.uri}")
    return found


def _in_order(plan: _File, files: Iterable[_File]) -> list[_File]:
    """The plan, which tells whose files these are, first; what readers begin with, last."""

    def place(file: _File) -> tuple[bool, int, str]:
        return file != plan, _LAST.index(file.path) if file.path in _LAST else -1, file.path

    return sorted(files, key=place)


class _Target:
    """The repository, as it was found.

    Attributes:
        head: its newest commit; "" where there is no repository.
        files: in it, by path.
    """

    def __init__(self, repo: str, uri: str) -> None:
        self.api, self.repo, self.uri = connect(uri), repo, uri
        self.head = ""
        self.files: dict[str, RepoFile] = {}
        self._hashes: dict[str, tuple[str, str]] = {}

    def find(self) -> None:
        """Look for it, and list its files."""
        from huggingface_hub import RepoFile
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

        with explained("open", self.uri):
            try:
                self.head = _patiently(lambda: self.api.dataset_info(self.repo).sha)
            except GatedRepoError:
                raise
            except RepositoryNotFoundError:
                return
            tree = self.api.list_repo_tree(self.repo, recursive=True, revision=self.head, repo_type="dataset")
            self.files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}

    def make(self, *, private: bool) -> None:
        """Make it, unless it is there."""
        if not self.head:
            with explained("write", self.uri):
                _patiently(lambda: self.api.create_repo(self.repo, repo_type="dataset", private=private or None))
            self.find()

    def read(self, path: str) -> bytes:
        """A file of it."""
        return HubStorage(self.uri, self.head).read(path)

    def has(self, file: _File, storage: Storage) -> bool:
        """Whether it has the same bytes under the same path."""
        there = self.files.get(file.path)
        if there is None or there.size != file.size:
            return False
        if there.lfs is not None and file.sha256:
            return bool(there.lfs.sha256 == file.sha256)
        if file.path not in self._hashes:
            data = file.data if file.data is not None else storage.read(file.path)
            git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
            self._hashes[file.path] = hashlib.sha256(data).hexdigest(), git
        sha256, git = self._hashes[file.path]
        return bool(there.lfs.sha256 == sha256 if there.lfs is not None else there.blob_id == git)


@dataclass(frozen=True)
class _Work:
    """What is to be in the repository.

    Attributes:
        storage: the data set's.
        files: in the order in which they are sent.
    """

    storage: Storage
    files: list[_File]

    def todo(self, target: _Target) -> list[_File]:
        """What isn't there."""
        return [file for file in self.files if not target.has(file, self.storage)]

    def stale(self, target: _Target) -> list[str]:
        """What an earlier state, or another data set, has left."""
        wanted = {file.path for file in self.files}
        return sorted(path for path in target.files if path.startswith(_ROOMS) and path not in wanted)

    def send(self, target: _Target) -> None:
        """Commit until everything is there.

        Raises:
            ShardError: a file isn't as its record says.
            StorageError: it can't be read; or the Hub refuses, or couldn't be used for some minutes.
        """
        failures, whole = 0, False
        while (todo := self.todo(target)) or self.stale(target):
            if whole:
                raise StorageError(f"{target.uri} holds other bytes than were sent; run again", uri=target.uri)
            before = target.head
            try:
                self._commit(target, todo)
                whole = True
            except PatchmintError:
                raise
            except Exception as error:
                # a commit may have been made although its reply was lost: what there is, is looked at again
                failures = failures + 1 if target.head == before else 1
                if failures > len(_PAUSES) or not is_passing(error):
                    raise explain_hub("write", target.uri, error) from error
                say(f"the Hub can't be used ({type(error).__name__}); trying again in {_PAUSES[failures - 1]:.0f} s")
                time.sleep(_PAUSES[failures - 1])
            target.find()

    def _commit(self, target: _Target, todo: list[_File]) -> None:
        from huggingface_hub import CommitOperationDelete

        batches = list(_batches(todo))
        if len(batches) > 1 and todo[-1].path != MANIFEST_PATH:
            batches = list(_batches([*todo, self.files[-1]]))
        done = Counter[str]()
        total = sum(map(len, batches)), sum(file.size for batch in batches for file in batch) / 1e9
        for number, batch in enumerate(batches or [[]], start=1):
            last = number >= len(batches)
            deleted = self.stale(target) if last else []
            if number == 1 and not last and MANIFEST_PATH in target.files:
                deleted = [MANIFEST_PATH]
            with ExitStack() as spools:
                made = target.api.create_commit(
                    target.repo,
                    [*(self._addition(file, spools) for file in batch), *map(CommitOperationDelete, deleted)],
                    commit_message=f"patchmint push, part {number} of {max(len(batches), 1)}",
                    repo_type="dataset",
                    parent_commit=target.head,
                )
            target.head = made.oid
            done.update(files=len(batch), bytes=sum(file.size for file in batch))
            say(f"sent {done['files']} of {total[0]} files, {done['bytes'] / 1e9:.1f} of {total[1]:.1f} GB")

    def _addition(self, file: _File, spools: ExitStack) -> CommitOperationAdd:
        """The file, on this machine's disk: Xet, the Hub's upload of big files, takes no streams.

        A copy of a store's has no name, only a path in this process: whatever ends it leaves nothing there.
        """
        from huggingface_hub import CommitOperationAdd

        if file.data is not None:
            return CommitOperationAdd(file.path, file.data)
        if isinstance(self.storage, LocalStorage):
            spool = self.storage.root / file.path
        else:
            try:
                copy = tempfile.TemporaryFile()  # noqa: SIM115
                spools.callback(_close, copy)
                with self.storage.open(file.path) as source:
                    shutil.copyfileobj(source, copy, 1 << 20)
                copy.flush()
                spool = Path(f"/proc/self/fd/{copy.fileno()}")
            except OSError as error:
                raise explain_place("write", uri_of(self.storage, file.path), error) from error
        addition = CommitOperationAdd(file.path, spool)
        if file.sha256 and addition.upload_info.sha256.hex() != file.sha256:
            shown = uri_of(self.storage, file.path)
            raise ShardError(f"{shown} isn't as its record says; run: patchmint inspect verify", uri=shown)
        return addition


def _close(copy: BinaryIO) -> None:
    with suppress(OSError):  # it flushes once more, onto a disk that is full already
        copy.close()


def _batches(files: Iterable[_File]) -> Iterator[list[_File]]:
    """Files for one commit each, bounded in number and in bytes."""
    batch: list[_File] = []
    for file in files:
        if batch and (len(batch) == _COMMIT_FILES or sum(each.size for each in batch) + file.size > _COMMIT_BYTES):
            yield batch
            batch = []
        batch.append(file)
    if batch:
        yield batch


def _patiently(request: Callable[[], _Value]) -> _Value:
    """The result of a request that may be made twice without harm."""
    for pause in _PAUSES[:3]:
        try:
            return request()
        except Exception as error:
            if not is_passing(error):
                raise
            time.sleep(pause)
    return request()
