"""Uploads in parts that were begun and never ended: a store keeps their parts, hidden, until somebody aborts them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from patchmint.errors import StorageError
from patchmint.storage.failures import explain_client
from patchmint.storage.interface import Storage
from patchmint.storage.stores import Address, check_encrypted, endpoint_of

_REMEDIES = {
    "gs": "give the bucket a lifecycle rule with the action AbortIncompleteMultipartUpload",
    "az": "Azure deletes them itself after a week",
}


@dataclass(frozen=True, order=True)
class Upload:
    """An upload in parts.

    Attributes:
        path: of the object that it was to become, relative to the storage's root.
        id: the store's name for it.
        begun: ISO 8601, by the store's clock.
    """

    path: str
    id: str
    begun: str


class Uploads:
    """The unfinished uploads below a storage's root, on S3. obstore can't list them: boto3 does, an extra."""

    def __init__(self, storage: Storage) -> None:
        """Connect.

        Args:
            storage: an object store.

        Raises:
            StorageError: it isn't on S3, or boto3 isn't installed.
        """
        scheme = storage.uri.partition("://")[0]
        if scheme != "s3":
            remedy = _REMEDIES.get(scheme, "a folder has none")
            raise StorageError(f"unfinished uploads are listed on s3:// only; {remedy}", uri=storage.uri)
        try:
            from boto3 import client
            from botocore.config import Config
        except ImportError as error:
            raise StorageError(
                "unfinished uploads are listed with boto3, which isn't installed; run: pip install 'patchmint[s3]'",
                uri=storage.uri,
            ) from error
        endpoint = endpoint_of(scheme)
        check_encrypted(scheme, storage.uri)
        self._uri = storage.uri
        self._address = Address.parse(storage.uri)
        self._prefix = f"{self._address.prefix}/" if self._address.prefix else ""
        # as obstore has it
        style = {"addressing_style": "path"} if endpoint else {}
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        self._client: Any = client("s3", endpoint_url=endpoint or None, region_name=region, config=Config(s3=style))

    def list(self, rooms: Iterable[str]) -> list[Upload]:
        """All below some prefixes.

        Args:
            rooms: beginnings of paths, relative to the storage's root.

        Raises:
            StorageError: the store refuses, or can't be reached.
        """
        found = []
        for room in rooms:
            try:
                pages = self._client.get_paginator("list_multipart_uploads").paginate(
                    Bucket=self._address.bucket, Prefix=self._prefix + room
                )
                found += [upload for page in pages for upload in page.get("Uploads", [])]
            except Exception as error:
                raise explain_client("list the uploads of", self._uri, error) from error
        return sorted(
            Upload(upload["Key"].removeprefix(self._prefix), upload["UploadId"], upload["Initiated"].isoformat())
            for upload in found
        )

    def abort(self, upload: Upload) -> None:
        """Delete its parts; one that has ended meanwhile is fine.

        Raises:
            StorageError: the store refuses, or can't be reached.
        """
        try:
            self._client.abort_multipart_upload(
                Bucket=self._address.bucket, Key=self._prefix + upload.path, UploadId=upload.id
            )
        except self._client.exceptions.NoSuchUpload:
            pass
        except Exception as error:
            raise explain_client("abort an upload of", f"{self._uri}/{upload.path}", error) from error
