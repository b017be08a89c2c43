"""Connections to object stores: which class, which limits of time, what may go unencrypted."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from obstore.store import AzureStore, GCSStore, S3Store

from patchmint.errors import StorageError
from patchmint.storage.failures import explain_store

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

SCHEMES = ("s3", "gs", "az")
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": (),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
_ALLOW_HTTP = {"s3": "AWS_ALLOW_HTTP", "gs": "GOOGLE_ALLOW_HTTP", "az": "AZURE_ALLOW_HTTP"}


@dataclass(frozen=True)
class Address:
    """An object store's URI in its parts."""

    scheme: str
    bucket: str
    prefix: str

    @classmethod
    def parse(cls, uri: str) -> Address:
        """Take a URI apart that `open_storage` has checked."""
        scheme, _, rest = uri.partition("://")
        bucket, _, prefix = rest.partition("/")
        return cls(scheme, bucket, prefix.removesuffix("/"))

    @property
    def lists_in_order(self) -> bool:
        """Whether listings come sorted: all do but those of S3's directory buckets, which this suffix marks."""
        return not self.bucket.endswith("--x-s3")


def connect(uri: str, *, silence: float, patience: float) -> ObjectStore:
    """A store; its settings and credentials come from the environment.

    Args:
        uri: checked by `open_storage`.
        silence: seconds without a byte from the server after which a request counts as failed.
        patience: seconds for which a request, also each of a big upload's, is tried again; 0: never.

    Raises:
        StorageError: a setting is missing or wrong.
    """
    address = Address.parse(uri)
    prefix = address.prefix or None
    client: ClientConfig = {
        "allow_http": check_encrypted(address.scheme, uri),
        "connect_timeout": timedelta(seconds=5),
        "read_timeout": timedelta(seconds=silence),
        # Of the whole request, with the body: long enough for a big object on a slow line.
        "timeout": timedelta(hours=1),
    }
    retry: RetryConfig = {
        "max_retries": 30 if patience else 0,
        "retry_timeout": timedelta(seconds=patience),
        "backoff": {
            "init_backoff": timedelta(seconds=0.1),
            "max_backoff": timedelta(seconds=2),
            "base": 2,
        },
    }
    try:
        if address.scheme == "s3":
            return S3Store(
                address.bucket,
                prefix=prefix,
                config={"checksum_algorithm": "SHA256"},
                client_options=client,
                retry_config=retry,
            )
        if address.scheme == "gs":
            return GCSStore(address.bucket, prefix=prefix, client_options=client, retry_config=retry)
        return AzureStore(address.bucket, prefix=prefix, client_options=client, retry_config=retry)
    except Exception as error:
        # obstore's settings fail in many ways; all are the caller's environment.
        raise explain_store("open", uri, error) from error


def endpoint_of(scheme: str) -> str:
    """The address in the environment of such stores; "" = their provider's own."""
    return next((os.environ[name] for name in _ENDPOINTS[scheme] if os.environ.get(name)), "")


def check_encrypted(scheme: str, uri: str) -> bool:
    """Whether requests may go unencrypted: to this machine, or because the environment says so.

    Raises:
        StorageError: they would, and mayn't.
    """
    endpoint = endpoint_of(scheme)
    allowed = os.environ.get(_ALLOW_HTTP[scheme], "").lower() in ("1", "true", "yes", "on")
    if endpoint.lower().startswith("http://") and not allowed and not is_loopback(endpoint):
        raise StorageError(
            f"can't open {uri}: the endpoint in the environment is http://, and data and signatures would travel "
            f"readable; use https://, or set {_ALLOW_HTTP[scheme]}=true where the network is trusted",
            uri=uri,
        )
    return allowed or endpoint.lower().startswith("http://")


def is_loopback(endpoint: str) -> bool:
    """Whether an address means this machine."""
    host = urlsplit(endpoint).hostname or ""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
