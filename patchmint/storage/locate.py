"""Which storage a path or URI means, and whether it keeps its promises."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from patchmint.errors import StorageError
from patchmint.storage import hub
from patchmint.storage.failures import explain
from patchmint.storage.interface import Storage, temporary_name
from patchmint.storage.local import LocalStorage, existing_folder, prune, sync_folder
from patchmint.storage.objects import ObjectStorage
from patchmint.storage.patience import Patience
from patchmint.storage.stores import SCHEMES


def open_storage(uri: str | os.PathLike[str], *, outage_seconds: float | None = None) -> Storage:
    """The storage at a path or URI.

    Nothing is touched yet: the first write makes a folder, the first use connects to a store.

    Settings of a store come from its usual environment variables: `AWS_ACCESS_KEY_ID`, `AWS_REGION`,
    `AWS_ENDPOINT_URL`; `GOOGLE_APPLICATION_CREDENTIALS`; `AZURE_STORAGE_ACCOUNT_NAME`, `AZURE_STORAGE_ACCOUNT_KEY`;
    `HF_TOKEN`, `HF_ENDPOINT`.
    Plain http is taken to a loopback address, and elsewhere with `AWS_ALLOW_HTTP=true` (or `AZURE_ALLOW_HTTP`).

    Args:
        uri: a path, `file:///FOLDER`, `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX`, or, for
            reading, `hf://datasets/ORG/NAME[@REVISION][/FOLDER]`.
        outage_seconds: how long passing faults are waited out. None: for some 15 seconds, in a folder not at all. A
            store that has never answered, or was waited for in vain, isn't waited for any longer than that.

    Raises:
        StorageError: it is none of these, or there are credentials in it.
    """
    text = os.fspath(uri)
    if "\0" in text or not text:
        raise StorageError(f"{text!r} isn't a path or URI; give a folder, or a URI like s3://BUCKET/PREFIX", uri=text)
    scheme, separator, _ = text.partition("://")
    patience = Patience(outage_seconds or 0.0, has_answered=True)  # of a folder
    if not separator:
        if re.match(r"[a-z0-9]+:/", text):
            raise _refused(text, f"looks like a URI with one slash; write {text.replace(':/', '://', 1)}")
        return LocalStorage(text, Path(text).expanduser().absolute(), patience)
    if scheme == "file":
        return LocalStorage(text, _file_path(text), patience)
    if scheme in SCHEMES:
        return ObjectStorage(_checked_uri(text), outage_seconds)
    if scheme == hub.SCHEME:
        return hub.HubStorage(text, outage_seconds=outage_seconds)
    known = ", ".join(f"{name}://" for name in ("file", *SCHEMES, hub.SCHEME))
    raise _refused(text, f"is of an unknown kind; give a path, or a URI that begins with {known}")


def creates_conditionally(storage: Storage) -> bool:
    """Try whether `Storage.create` really refuses a second time: some stores ignore the condition.

    Nothing is left of the try, not even a folder.

    Raises:
        StorageError: it can't be written.
    """
    name = temporary_name()
    root = storage.root if isinstance(storage, LocalStorage) else None
    before = existing_folder(root) if root is not None else None
    try:
        first = storage.create(name, b"first")
        conditional = first and not storage.create(name, b"second") and storage.read(name) == b"first"
        storage.delete([name])
        return conditional
    except BaseException:
        with suppress(StorageError):  # what failed first is the cause
            storage.delete([name])
        raise
    finally:
        if root is not None and before is not None:
            prune(root, before)


def syncs_names(storage: Storage) -> bool:
    """Try whether names in a folder can be made to last through a power cut; a store sees to that itself.

    Raises:
        StorageError: the folder can't be looked at.
    """
    if not isinstance(storage, LocalStorage):
        return True
    folder = existing_folder(storage.root)
    try:
        return sync_folder(folder)
    except OSError as error:
        raise explain("sync", str(folder), error) from error


def _file_path(uri: str) -> Path:
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise _refused(uri, "names a host or a relative path; write file:/// and then an absolute path")
    # "?" and "#" are ordinary characters in file names.
    return Path(unquote(uri.partition("://")[2].removeprefix("localhost")))


def _checked_uri(uri: str) -> str:
    """An object store's URI without secrets in it, since it goes to logs and manifests."""
    _, _, rest = uri.partition("://")
    bucket, _, prefix = rest.partition("/")
    if "@" in bucket or ":" in bucket:
        raise _refused(
            uri,
            "holds credentials, a port or an address; write only the bucket there, and give the rest in environment "
            "variables such as AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL",
        )
    if not bucket or any(sign in rest for sign in "?#%"):
        raise _refused(uri, "has no bucket, or one of '?', '#', '%' in it; write SCHEME://BUCKET/PREFIX")
    if any(part in ("", ".", "..") for part in prefix.removesuffix("/").split("/")) and prefix:
        raise _refused(uri, "has an empty part, '.' or '..' in its prefix; write SCHEME://BUCKET/PREFIX")
    return uri


def _refused(uri: str, why: str) -> StorageError:
    """The error for a URI that is none; whatever may be a login or a token is cut out of it."""
    scheme, _, rest = uri.partition("://")
    host, slash, path = rest.partition("/")
    shown = f"{scheme}://{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}"
    return StorageError(f"{shown} {why}", uri=shown)
