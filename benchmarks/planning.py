"""What planning reads of a source on a store, and how long it takes where each request takes its time.

    python benchmarks/planning.py [--latency 0.02] [--json]      # about a minute

The server is the tests' (moto, on loopback), behind a proxy that counts and delays. Sources: tars as img2dataset writes
them, with photographs of 100 to 200 kB and with thumbnails of 10 to 30 kB, and a folder with a caption beside each
image. The tars are small, since the server reads a whole one for each range, but are sections of their own, as tars of
over 32 MB are. `mb` are read, listings included; `share` is that through the files' bytes (of the folder: captions').
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from pydantic import TypeAdapter

from patchmint.config.sources import SourceConfig
from patchmint.pipeline.plan import reading
from patchmint.pipeline.sources import base, folder, open_source
from patchmint.storage import Storage, open_storage

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from flaky_proxy import flaky_proxy
from s3_server import s3_server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=0.02, help="seconds that each request waits")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    sources = {
        "photographs": ("webdataset", lambda storage: put_tars(storage, 32, 20, (100_000, 200_000))),
        "thumbnails": ("webdataset", lambda storage: put_tars(storage, 32, 100, (10_000, 30_000))),
        "captions": ("folder", lambda storage: put_folder(storage, 2000)),
    }
    base._SECTION_BYTES, folder._SECTION_FILES = 1, 1000
    found = {}
    with s3_server() as server, flaky_proxy(server.port) as proxy:
        os.environ |= server.env()
        for name, (kind, put) in sources.items():
            uri = server.new_bucket()
            size = put(open_storage(uri))
            os.environ |= server.env(proxy.port)
            proxy.seen.clear()
            proxy.bytes_sent, proxy.latency = 0, arguments.latency
            config = TypeAdapter(SourceConfig).validate_python({"kind": kind, "uri": uri})
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as out:
                settings = config.model_dump(mode="json")
                parts = [(open_source(config), settings)]
                with reading(parts, open_storage(out), lambda _: None, print) as read:
                    samples = sum(batch.num_rows for batch in read)
            seconds = time.perf_counter() - start
            found[name] = {
                "samples": samples,
                "requests": len(proxy.seen),
                "mb": proxy.bytes_sent / 1e6,
                "share": proxy.bytes_sent / size,
                "seconds": seconds,
            }
            os.environ |= server.env()
            if not arguments.json:
                print(
                    f"{name:12} {samples:5} samples: {len(proxy.seen):5} requests, {proxy.bytes_sent / 1e6:5.1f} MB of "
                    f"{size / 1e6:.1f} MB, {seconds:.1f} s",
                    flush=True,
                )
    if arguments.json:
        print(json.dumps(found, indent=1))


def put_tars(storage: Storage, tars: int, samples: int, sizes: tuple[int, int]) -> int:
    """Tars with random bytes for images; all bytes together."""
    dice, written = random.Random(0), 0
    for number in range(tars):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for place in range(samples):
                key = f"{number:05}{place:04}"
                facts = {"caption": f"photo {key}", "url": f"https://host/{key}.jpg", "exif": "x" * 1000}
                members = {
                    "jpg": dice.randbytes(dice.randint(*sizes)),
                    "json": json.dumps(facts).encode(),
                    "txt": facts["caption"].encode(),
                }
                for ending, data in members.items():
                    member = tarfile.TarInfo(f"{key}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        storage.write(f"{number:05}.tar", file.getvalue())
        written += file.tell()
    return written


def put_folder(storage: Storage, samples: int) -> int:
    """Images of a few bytes, each with a caption; all bytes of captions together."""
    written = 0
    for place in range(samples):
        caption = f"photo {place}".encode()
        storage.write(f"{place:06}.jpg", b"image")
        storage.write(f"{place:06}.txt", caption)
        written += len(caption)
    return written


if __name__ == "__main__":
    main()
