"""Runs Python's google-cloud-storage against an embedded bucket, one line a check.

usage: bucket_client.py URL BUCKET

The bucket at URL exists and is empty; it is left empty. Exit status 1 when a check failed.
"""

import asyncio
import base64
import hashlib
import io
import os
import random
import sys
import tempfile
import traceback
from pathlib import Path

URL, BUCKET = sys.argv[1:3]
for name in [k for k in os.environ if k.startswith(("GOOGLE_", "STORAGE_", "CLOUDSDK_")) or k.lower().endswith("_proxy")]:
    del os.environ[name]  # nothing of the person's own set-up, above all no credentials
os.environ["STORAGE_EMULATOR_HOST"] = URL

from google.api_core import exceptions  # noqa: E402: it reads the environment when it is imported
from google.api_core.client_options import ClientOptions  # noqa: E402
from google.auth.credentials import AnonymousCredentials  # noqa: E402
from google.cloud import storage  # noqa: E402
from google.cloud.storage import transfer_manager  # noqa: E402
from google.cloud.storage.asyncio.async_grpc_client import AsyncGrpcClient  # noqa: E402
from google.cloud.storage.asyncio.async_multi_range_downloader import AsyncMultiRangeDownloader  # noqa: E402
from google.cloud.storage.exceptions import DataCorruption  # noqa: E402

DATA = random.Random(1).randbytes((9 << 20) + 7)  # above the 8 MiB from which an upload is resumable
CHUNK = 256 << 10
WORK = Path(tempfile.mkdtemp(prefix="bucket-client-"))
client = storage.Client(project="project")
bucket = client.bucket(BUCKET)
failed = 0


def check(what):
    """Runs the function below it at once and prints whether it went through."""

    def run(fn):
        global failed
        try:
            fn()
            print(f"ok    google-cloud-storage: {what}", flush=True)
        except Exception:
            failed += 1
            traceback.print_exc()
            print(f"FAIL  google-cloud-storage: {what}", flush=True)

    return run


def md5(data):
    return base64.b64encode(hashlib.md5(data).digest()).decode()


def refused(error, fn, *args, **kwargs):
    try:
        fn(*args, **kwargs)
    except error:
        return
    raise AssertionError(f"no {error.__name__}")


@check("buckets: get, create, list, delete")
def _():
    assert client.get_bucket(BUCKET).name == BUCKET
    other = client.create_bucket("another-bucket", location="europe-west4")
    refused(exceptions.Conflict, client.create_bucket, "another-bucket")
    assert [b.name for b in client.list_buckets()] == sorted([BUCKET, other.name])
    other.delete()
    refused(exceptions.NotFound, client.get_bucket, "another-bucket")


@check("multipart upload, with crc32c and md5")
def _():
    for checksum in ("crc32c", "md5"):
        blob = bucket.blob(f"small/{checksum}")
        blob.metadata = {"k": "v"}
        blob.upload_from_string(DATA[:1000], content_type="x/y", checksum=checksum)
        blob.reload()
        assert (blob.size, blob.md5_hash, blob.content_type, blob.metadata) == (1000, md5(DATA[:1000]), "x/y", {"k": "v"})


@check("resumable upload, in one piece and in chunks, with crc32c and md5")
def _():
    path = WORK / "big"
    path.write_bytes(DATA)
    for checksum in ("crc32c", "md5"):
        for size in (None, CHUNK, 4 * CHUNK):
            blob = bucket.blob(f"big/{checksum}-{size}", chunk_size=size)
            blob.upload_from_filename(path, checksum=checksum)
            blob.reload()
            assert blob.size == len(DATA) and blob.md5_hash == md5(DATA)


@check("an upload of unknown length")
def _():
    blob = bucket.blob("stream", chunk_size=CHUNK)
    with blob.open("wb", chunk_size=CHUNK) as f:
        f.write(DATA[: 3 * CHUNK + 5])
    assert blob.download_as_bytes() == DATA[: 3 * CHUNK + 5]
    blob.delete()


@check("download, checked with crc32c and md5")
def _():
    for checksum in ("crc32c", "md5"):
        blob = bucket.blob(f"big/{checksum}-None")
        assert blob.download_as_bytes(checksum=checksum) == DATA
        blob.download_to_filename(WORK / "got", checksum=checksum)
        assert (WORK / "got").read_bytes() == DATA


@check("ranges, chunked and concurrent downloads")
def _():
    blob = bucket.blob("big/md5-None")
    assert blob.download_as_bytes(start=0, end=0) == DATA[:1]
    assert blob.download_as_bytes(start=1000, end=1999) == DATA[1000:2000]
    assert blob.download_as_bytes(start=len(DATA) - 3) == DATA[-3:]
    assert blob.download_as_bytes(start=5, end=2 * len(DATA)) == DATA[5:]
    refused(exceptions.RequestRangeNotSatisfiable, blob.download_as_bytes, start=len(DATA))
    assert bucket.blob("big/md5-None", chunk_size=CHUNK).download_as_bytes() == DATA
    with blob.open("rb", chunk_size=CHUNK) as f:
        f.seek(-10, 2)
        assert f.read() == DATA[-10:]
    transfer_manager.download_chunks_concurrently(blob, str(WORK / "parts"), chunk_size=1 << 20, max_workers=4, worker_type="thread")
    assert (WORK / "parts").read_bytes() == DATA


@check("a corrupted download is noticed by the client")
def _():
    broken = storage.Client(project="project", extra_headers={"x-goog-emulator-instructions": "return-corrupted-data"})
    refused(DataCorruption, broken.bucket(BUCKET).blob("big/md5-None").download_as_bytes)


@check("a broken connection and a 503 are retried")
def _():
    import requests

    test = requests.post(f"{URL}/retry_test", json={"instructions": {
        "storage.objects.get": ["return-broken-stream-after-1024K", "return-503"]}}).json()
    shaky = storage.Client(project="project", extra_headers={"x-retry-test-id": test["id"]})
    assert shaky.bucket(BUCKET).blob("big/md5-None").download_as_bytes() == DATA
    assert requests.get(f"{URL}/retry_test/{test['id']}").json()["completed"]


@check("preconditions on upload, download, metadata and delete")
def _():
    blob = bucket.blob("conditional")
    blob.upload_from_string(b"one", if_generation_match=0)
    refused(exceptions.PreconditionFailed, blob.upload_from_string, b"two", if_generation_match=0)
    right, wrong = blob.generation, blob.generation + 1
    refused(exceptions.PreconditionFailed, blob.download_as_bytes, if_generation_match=wrong)
    refused(exceptions.PreconditionFailed, blob.reload, if_generation_match=wrong)
    refused(exceptions.PreconditionFailed, blob.patch, if_metageneration_match=7)
    refused(exceptions.PreconditionFailed, blob.delete, if_generation_match=wrong)
    assert blob.download_as_bytes(if_generation_match=right) == b"one"
    blob.metadata = {"a": "b"}
    blob.patch(if_metageneration_match=1)
    assert blob.metageneration == 2
    blob.delete(if_generation_match=right)
    assert not blob.exists()


@check("compose: component count, no md5, preconditions")
def _():
    parts = [bucket.blob(f"part/{i}") for i in range(3)]
    for i, part in enumerate(parts):
        part.upload_from_string(DATA[i * 1000 : (i + 1) * 1000])
    whole = bucket.blob("whole")
    whole.compose(parts, if_generation_match=0)
    whole.reload()
    assert whole.component_count == 3 and whole.md5_hash is None and whole.download_as_bytes() == DATA[:3000]
    refused(exceptions.PreconditionFailed, whole.compose, parts, if_generation_match=0)
    refused(exceptions.BadRequest, whole.compose, parts * 11)
    refused(exceptions.NotFound, whole.compose, [bucket.blob("no")])


@check("rewrite, copy, rename")
def _():
    source = bucket.blob("whole")
    token, done, total = bucket.blob("rewritten").rewrite(source)
    assert (token, done, total) == (None, 3000, 3000)
    assert bucket.copy_blob(source, bucket, "copied").download_as_bytes() == DATA[:3000]
    assert bucket.rename_blob(bucket.blob("copied"), "renamed").name == "renamed"
    assert not bucket.blob("copied").exists()


@check("list: prefix, delimiter, pages, offsets")
def _():
    def listed(**query):
        found = client.list_blobs(BUCKET, **query)
        return [b.name for b in found], sorted(found.prefixes)

    assert listed(prefix="part/") == ([f"part/{i}" for i in range(3)], [])
    assert listed(delimiter="/")[1] == ["big/", "part/", "small/"]
    assert listed(prefix="part/", page_size=1)[0] == [f"part/{i}" for i in range(3)]
    assert listed(start_offset="part/1", end_offset="part/2")[0] == ["part/1"]


@check("names of any kind")
def _():
    for name in ("a b+c%2F?d#e&f", "../../x", "/lead", "é/漢字/😀", "n" * 1024):
        blob = bucket.blob(name)
        blob.upload_from_string(name.encode())
        assert blob.download_as_bytes() == name.encode()
        assert bucket.get_blob(name).name == name
        blob.delete()
    refused(exceptions.BadRequest, bucket.blob("n" * 1025).upload_from_string, b"")


def over_grpc(read):
    """Runs a coroutine with a client that speaks gRPC."""

    async def run():
        host = ClientOptions(api_endpoint=URL.removeprefix("http://"))
        await read(AsyncGrpcClient(credentials=AnonymousCredentials(), client_options=host))

    asyncio.run(run())


async def ranges(rpc, name, wanted, metadata=None, **kwargs):
    """Reads ranges over one stream and compares them."""
    downloader = await AsyncMultiRangeDownloader.create_mrd(rpc, BUCKET, name, metadata=metadata, **kwargs)
    parts = [(start, length, io.BytesIO()) for start, length in wanted]
    await downloader.download_ranges(parts)
    await downloader.close()
    for start, length, got in parts:
        assert got.getvalue() == DATA[start : start + length if length else None], (start, length)


@check("gRPC: the whole object, and many ranges of it over one stream")
def _():
    wanted = [(i * 100003, 300007 + i) for i in range(90)]
    over_grpc(lambda rpc: ranges(rpc, "big/crc32c-None", [(0, 0)]))
    over_grpc(lambda rpc: ranges(rpc, "big/crc32c-None", wanted + [(0, 1), (len(DATA) - 1, 1), (5, 0)]))


@check("gRPC: a stream that breaks is opened again")
def _():
    fault = [("x-goog-emulator-instructions", "return-broken-stream-after-2500K")]
    over_grpc(lambda rpc: ranges(rpc, "big/crc32c-None", [(0, 0)], fault))


@check("gRPC: a corrupted message is noticed by the client")
def _():
    fault = [("x-goog-emulator-instructions", "return-corrupted-data")]
    refused(DataCorruption, over_grpc, lambda rpc: ranges(rpc, "big/crc32c-None", [(1, 100)], fault))


@check("gRPC: metadata, a generation, what is not there")
def _():
    blob = bucket.get_blob("small/md5")

    async def look(rpc):
        got = await rpc.get_object(BUCKET, "small/md5")
        assert (got.size, got.generation, got.content_type, dict(got.metadata)) == (1000, blob.generation, "x/y", {"k": "v"})
        assert base64.b64encode(got.checksums.md5_hash).decode() == blob.md5_hash
        await ranges(rpc, "small/md5", [(0, 1000)], generation=blob.generation)

    over_grpc(look)
    refused(exceptions.NotFound, over_grpc, lambda rpc: ranges(rpc, "small/none", [(0, 1)]))
    refused(exceptions.NotFound, over_grpc, lambda rpc: ranges(rpc, "small/md5", [(0, 1)], generation=1))
    refused(exceptions.OutOfRange, over_grpc, lambda rpc: ranges(rpc, "small/md5", [(1001, 1)]))


@check("delete in a batch; nothing is left")
def _():
    blobs = list(client.list_blobs(BUCKET))
    with client.batch():
        for blob in blobs:
            blob.delete()
    assert not list(client.list_blobs(BUCKET))


for file in WORK.iterdir():
    file.unlink()
WORK.rmdir()
sys.exit(1 if failed else 0)
