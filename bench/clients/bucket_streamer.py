"""Runs Run:ai's model streamer against an embedded bucket, one line a check.

usage: bucket_streamer.py URL BUCKET

Needs runai-model-streamer[gcs], torch and safetensors. Exit status 1 when a check failed.
"""

import os
import sys
import tempfile
import traceback
from pathlib import Path

URL, BUCKET = sys.argv[1:3]
for name in [k for k in os.environ if k.startswith(("GOOGLE_", "STORAGE_", "CLOUDSDK_", "RUNAI_")) or k.lower().endswith("_proxy")]:
    del os.environ[name]  # nothing of the person's own set-up, above all no credentials
# The first is for the part that reads weights (C++), the second for the one that lists and pulls (Python).
os.environ |= {"CLOUD_STORAGE_EMULATOR_ENDPOINT": URL, "STORAGE_EMULATOR_HOST": URL, "RUNAI_STREAMER_GCS_USE_ANONYMOUS_CREDENTIALS": "true"}

import torch  # noqa: E402: they read the environment when they are imported
from google.cloud import storage  # noqa: E402
from runai_model_streamer import SafetensorsStreamer, list_safetensors, pull_files  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

WORK = Path(tempfile.mkdtemp(prefix="bucket-streamer-"))
PREFIX = "org/model/0123"
bucket = storage.Client(project="project").bucket(BUCKET)
tensors, failed = {}, 0


def check(what):
    """Runs the function below it at once and prints whether it went through."""

    def run(fn):
        global failed
        try:
            fn()
            print(f"ok    Run:ai streamer: {what}", flush=True)
        except Exception:
            failed += 1
            traceback.print_exc()
            print(f"FAIL  Run:ai streamer: {what}", flush=True)

    return run


def upload():
    torch.manual_seed(1)
    for shard in range(2):
        part = {f"layer.{shard}.{i}": torch.randn(1 << (10 + i), 7).to(torch.bfloat16) for i in range(9)}
        save_file(part, WORK / f"model-{shard}.safetensors")
        tensors.update(part)
    (WORK / "config.json").write_text('{"model_type": "gemma3"}')
    for path in WORK.iterdir():
        bucket.blob(f"{PREFIX}/{path.name}").upload_from_filename(path)


@check("list the weights of a model")
def _():
    upload()
    assert sorted(list_safetensors(f"gs://{BUCKET}/{PREFIX}")) == [f"gs://{BUCKET}/{PREFIX}/model-{i}.safetensors" for i in range(2)]


@check("pull the files that are no weights")
def _():
    pull_files(f"gs://{BUCKET}/{PREFIX}", str(WORK / "pulled"), ignore_pattern=["*.safetensors"])
    assert [p.name for p in (WORK / "pulled").iterdir()] == ["config.json"]
    assert (WORK / "pulled" / "config.json").read_bytes() == (WORK / "config.json").read_bytes()


@check("stream tensors, each equal to the file's")
def _():
    seen = set()
    with SafetensorsStreamer() as streamer:
        streamer.stream_files([f"gs://{BUCKET}/{PREFIX}/model-{i}.safetensors" for i in range(2)])
        for name, tensor in streamer.get_tensors():
            assert torch.equal(tensor, tensors[name]), name
            seen.add(name)
    assert seen == set(tensors)


@check("a weight that is not there is an error")
def _():
    try:
        with SafetensorsStreamer() as streamer:
            streamer.stream_files([f"gs://{BUCKET}/{PREFIX}/no.safetensors"])
            list(streamer.get_tensors())
    except Exception:
        return
    raise AssertionError("no error")


for blob in bucket.list_blobs(prefix=PREFIX):
    blob.delete()
for path in sorted(WORK.rglob("*"), reverse=True):
    path.rmdir() if path.is_dir() else path.unlink()
WORK.rmdir()
sys.stdout.flush()
os._exit(1 if failed else 0)  # the streamer's threads may outlive a failed read
