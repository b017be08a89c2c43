"""A data set on the Hugging Face Hub, for reading: all of it at one commit.

huggingface_hub has the protocol, the tokens and the retries. It is imported at the first request.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self
from urllib.parse import quote, unquote, urlsplit

from patchmint.errors import NotFoundError, PatchmintError, StorageError
from patchmint.storage.cache import cache_folder
from patchmint.storage.failures import explain_hub
from patchmint.storage.interface import Entry, NewFile, checked, uri_of
from patchmint.storage.patience import Patience
from patchmint.storage.ranges import open_ranges
from patchmint.storage.stores import is_loopback

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SCHEME = "hf"
_CLIENT = 2
"""Transformers 4 comes with an older one, which lacks what is used here."""
_BUFFER = 4 << 20
_TIMEOUT = 30.0
_FRESH_SECONDS = 600
"""Signed addresses are good for an hour; a wrong clock, or a Hub of one's own, may make it less."""
_MOST_PLACES = 4096
_FORM = re.compile(
    r"hf://datasets/(?P<repo>\w[\w.-]*/\w[\w.-]*)"
    r"(?:@(?P<revision>refs/convert/[\w.-]+|refs/pr/\d+|[^/@?#]+))?(?:/(?P<folder>[^?#]*))?",
    re.ASCII,
)
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class HubAddress:
    """`hf://datasets/ORG/NAME[@REVISION][/FOLDER]` in its parts.

    Attributes:
        repo: ORG/NAME.
        revision: a branch, a tag or a commit; None: the main branch.
        folder: where in it; "" is its top.
    """

    repo: str
    revision: str | None = None
    folder: str = ""

    @classmethod
    def parse(cls, uri: str) -> Self:
        """Take a URI apart. In a branch's name, "/" is written %2F.

        Raises:
            StorageError: it isn't of this form.
        """
        match = _FORM.fullmatch(uri)
        if not match:
            shown = re.sub(r"//[^/]*@", "//", uri.partition("?")[0])
            raise StorageError(f"{shown} isn't of the form hf://datasets/ORG/NAME[@REVISION][/FOLDER]", uri=shown)
        revision = match["revision"]
        return cls(match["repo"], unquote(revision) if revision else None, checked(match["folder"] or "", folder=True))

    def __str__(self) -> str:
        revision = self.revision or ""
        at = f"@{revision if revision.startswith('refs/') else quote(revision, safe='')}" if revision else ""
        return f"hf://datasets/{self.repo}{at}{'/' if self.folder else ''}{self.folder}"


def is_on_hub(uri: str) -> bool:
    """Whether a URI means the Hub."""
    return uri.startswith(f"{SCHEME}://")


def pinned(uri: str) -> str:
    """The same URI with the commit as its revision to which its revision leads now.

    Raises:
        StorageError: there is no such data set or revision, or the Hub can't be asked.
    """
    return str(replace(HubAddress.parse(uri), revision=HubStorage(uri).commit))


def unpinned(uri: str) -> str:
    """The same URI without a revision."""
    return str(replace(HubAddress.parse(uri), revision=None))


def staging_folder(uri: str) -> Path:
    """Where a data set is built that goes to the Hub, in the user's cache."""
    return (cache_folder() / "staging" / HubAddress.parse(uri).repo.replace("/", "--")).absolute()


def connect(shown: str) -> HfApi:
    """The Hub's client; address and token come from `HF_ENDPOINT`, `HF_TOKEN`, or `hf auth login`.

    Args:
        shown: the URI, for the message.

    Raises:
        StorageError: `HF_ENDPOINT` would send the token unencrypted, or the client is too old.
    """
    from huggingface_hub import HfApi, __version__

    if int(__version__.split(".")[0]) < _CLIENT:
        raise StorageError(
            f"can't open {shown}: it needs huggingface_hub {_CLIENT} or newer, and this is {__version__}; run: "
            "pip install -U transformers huggingface_hub",
            uri=shown,
        )
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    if not endpoint.startswith("https://") and not is_loopback(endpoint):
        raise StorageError(
            f"can't open {shown}: HF_ENDPOINT isn't https://, and data and token would travel readable", uri=shown
        )
    return HfApi(endpoint=endpoint, library_name="patchmint")


@contextmanager
def explained(action: str, shown: str) -> Iterator[None]:
    """Turn what the Hub's client raises into a `StorageError`.

    Args:
        action: a verb, such as "read".
        shown: the file.
    """
    try:
        yield
    except PatchmintError:
        raise
    except Exception as error:
        # The client raises its own errors, httpx's, and the system's.
        raise explain_hub(action, shown, error) from error


@dataclass(frozen=True)
class _Place:
    """A file's size, and the address that its bytes come from until a time of `time.monotonic`."""

    size: int
    url: str
    until: float


class HubStorage:
    """A data set's repository on the Hub at one commit, or a folder in it, as a `Storage` that can't be written.

    Attributes:
        uri: `hf://`, checked.
    """

    is_local = False

    def __init__(self, uri: str, commit: str | None = None, outage_seconds: float | None = None) -> None:
        """Touches nothing yet.

        Args:
            uri: see `HubAddress`.
            commit: the one to read. None: that to which the revision leads at the first use.
            outage_seconds: as for `open_storage`; the client itself tries for some seconds.
        """
        self.uri = uri
        self._patience = Patience(outage_seconds or 0.0)
        self._address = HubAddress.parse(uri)
        self._places: dict[str, _Place] = {}
        if commit is None and _COMMIT.fullmatch(self._address.revision or ""):
            commit = self._address.revision
        if commit is not None:
            self.commit = commit

    def __reduce__(self) -> tuple[type[HubStorage], tuple[str, str | None, float | None]]:
        """The commit travels, so that all processes read the same; connections can't, and the token mustn't."""
        return HubStorage, (self.uri, self.__dict__.get("commit"), self._patience.seconds)

    def __repr__(self) -> str:
        return f"HubStorage({self.uri!r})"

    @cached_property
    def commit(self) -> str:
        """The commit that is read, in hex.

        Raises:
            StorageError: there is no such data set or revision, or the Hub can't be asked.
        """
        revision = quote(self._address.revision or "main", safe="")
        with explained("open", self.uri):
            url = f"{self._api.endpoint}/api/datasets/{self._address.repo}/revision/{revision}"
            found = self._get(url).json().get("sha")
            if not isinstance(found, str) or not _COMMIT.fullmatch(found):
                raise StorageError(f"can't open {self.uri}: the Hub named no commit; check HF_ENDPOINT", uri=self.uri)
            return found

    def read(self, path: str) -> bytes:
        """See `Storage.read`."""
        with explained("read", uri_of(self, path)):
            data: bytes = self._get(self._resolve_url(path)).content
            return data

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """See `Storage.read_range`."""
        from huggingface_hub.errors import HfHubHTTPError

        shown = uri_of(self, path)
        place = self._place(path)
        if start < 0 or length < 0 or start + length > place.size:
            raise StorageError(f"{shown} has {place.size} bytes, so none at {start}, {length}", uri=shown)
        if length == 0:
            return b""
        with explained("read", shown):
            try:
                data = self._range(place, start, length)
            except HfHubHTTPError as error:
                if error.response.status_code not in (400, 401, 403, 404, 410):
                    raise
                # The signed address is good no more; or else the new one fails in the same way.
                self._places.pop(path, None)
                data = self._range(self._place(path), start, length)
        if len(data) != length:
            raise StorageError(f"{shown} came cut: {len(data)} bytes in place of {length}; run again", uri=shown)
        return data

    def size(self, path: str) -> int:
        """See `Storage.size`."""
        return self._place(path).size

    def exists(self, path: str) -> bool:
        """See `Storage.exists`."""
        try:
            self._place(path)
        except NotFoundError:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """See `Storage.list`."""
        from huggingface_hub import RepoFile
        from huggingface_hub.errors import EntryNotFoundError

        folder = "/".join(part for part in (self._address.folder, checked(prefix, folder=True)) if part)
        top = f"{self._address.folder}/" if self._address.folder else ""
        with explained("list", self.uri):
            try:
                entries = self._patience.repeated(
                    self.uri,
                    lambda: list(
                        self._api.list_repo_tree(
                            self._address.repo,
                            folder or None,
                            recursive=True,
                            revision=self.commit,
                            repo_type="dataset",
                        )
                    ),
                )
                found = [
                    Entry(entry.path.removeprefix(top), entry.size, entry.blob_id)
                    for entry in entries
                    if isinstance(entry, RepoFile)
                ]
            except EntryNotFoundError:
                found = []
        return iter(sorted(found))

    def folders(self, prefix: str) -> Sequence[str]:
        """See `Storage.folders`."""
        below = (entry.path.removeprefix(f"{prefix}/") for entry in self.list(prefix))
        return sorted({path.partition("/")[0] for path in below if "/" in path})

    def open(self, path: str, *, skipping: bool = False) -> BinaryIO:
        """See `Storage.open`."""
        read, size = partial(self.read_range, path), self.size(path)
        return open_ranges(read, size, uri_of(self, path), buffer=0 if skipping else _BUFFER)

    def write(self, path: str, data: bytes) -> None:  # noqa: ARG002
        """Refused, as all that changes files."""
        raise self._read_only()

    def create(self, path: str, data: bytes) -> bool:  # noqa: ARG002
        """Refused."""
        raise self._read_only()

    def new_file(self, path: str) -> AbstractContextManager[NewFile]:  # noqa: ARG002
        """Refused."""
        raise self._read_only()

    def move(self, source: str, target: str) -> None:  # noqa: ARG002
        """Refused."""
        raise self._read_only()

    def delete(self, paths: Iterable[str]) -> None:
        """Refused, unless there is nothing to delete."""
        if any(True for _ in paths):
            raise self._read_only()

    def delete_temporary(self) -> None:
        """There are none."""

    def delete_empty_folders(self, folder: str) -> None:
        """There are none."""

    @cached_property
    def _api(self) -> HfApi:
        return connect(self.uri)

    def _read_only(self) -> StorageError:
        return StorageError(
            f"{self.uri} can't be written file by file; build into a folder or a store, then run: "
            f"patchmint push FOLDER {unpinned(self.uri)}",
            uri=self.uri,
        )

    def _resolve_url(self, path: str) -> str:
        from huggingface_hub import hf_hub_url

        inner = "/".join(part for part in (self._address.folder, checked(path)) if part)
        url: str = hf_hub_url(
            self._address.repo, inner, repo_type="dataset", revision=self.commit, endpoint=self._api.endpoint
        )
        return url

    def _place(self, path: str) -> _Place:
        """Where the bytes are: asked once, so that ranges don't use up the Hub's limit of requests."""
        from huggingface_hub import get_hf_file_metadata

        place = self._places.get(path)
        if place is not None and time.monotonic() < place.until:
            return place
        with explained("look for", uri_of(self, path)):
            url, headers = self._resolve_url(path), self._headers(self._api.endpoint)
            found = self._patience.repeated(
                self.uri,
                lambda: get_hf_file_metadata(
                    url, headers=headers, endpoint=self._api.endpoint, timeout=_TIMEOUT, retry_on_errors=True
                ),
            )
            if found.size is None:
                raise StorageError(f"{uri_of(self, path)} has no size on the Hub", uri=uri_of(self, path))
        if len(self._places) >= _MOST_PLACES:
            self._places.clear()
        place = self._places[path] = _Place(found.size, found.location, time.monotonic() + _FRESH_SECONDS)
        return place

    def _range(self, place: _Place, start: int, length: int) -> bytes:
        reply = self._get(place.url, {"Range": f"bytes={start}-{start + length - 1}"})
        data: bytes = reply.content
        # A server may answer with the whole file.
        return data if reply.status_code == 206 else data[start : start + length]

    def _get(self, url: str, headers: dict[str, str] | None = None) -> Any:
        """The reply to a GET; also waits as long as the Hub's limit of requests asks for."""
        from huggingface_hub.utils import hf_raise_for_status, http_backoff

        # sizes are those of the files, not of what a proxy makes of them
        sent = self._headers(url) | {"Accept-Encoding": "identity"} | (headers or {})

        def get() -> Any:
            reply = http_backoff(
                "GET", url, headers=sent, follow_redirects=True, timeout=_TIMEOUT, max_retries=6, base_wait_time=0.2
            )
            hf_raise_for_status(reply)
            return reply

        return self._patience.repeated(self.uri, get)

    def _headers(self, url: str) -> dict[str, str]:
        """With the token, but only to the Hub itself."""
        from huggingface_hub.utils import build_hf_headers

        ours = urlsplit(url)[:2] == urlsplit(self._api.endpoint)[:2]
        headers: dict[str, str] = build_hf_headers(token=None if ours else False, library_name="patchmint")
        return headers
