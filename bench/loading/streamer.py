"""Streams a model's weights with Run:ai's model streamer into this process's memory.

usage: streamer.py URL FILE…            each FILE is gs://BUCKET/OBJECT in the bucket at URL, or a path
       streamer.py URL --from FIFO      the FILEs are the lines that come out of it; it is opened when all is imported

Prints one JSON object: seconds and processor time from the first request to the last tensor, without what
Python and torch take to start; bytes of tensors; and, computed afterwards, one crc32c over all tensors in
the order of their names. Needs runai-model-streamer[gcs] and torch.
"""

import json
import os
import sys
import time

URL, FILES = sys.argv[1], sys.argv[2:]
for name in [k for k in os.environ if k.startswith(("GOOGLE_", "STORAGE_", "CLOUDSDK_", "RUNAI_")) or k.lower().endswith("_proxy")]:
    del os.environ[name]  # nothing of the person's own set-up, above all no credentials
os.environ |= {"CLOUD_STORAGE_EMULATOR_ENDPOINT": URL, "STORAGE_EMULATOR_HOST": URL, "RUNAI_STREAMER_GCS_USE_ANONYMOUS_CREDENTIALS": "true"}

import google_crc32c  # noqa: E402: they read the environment when they are imported
import torch  # noqa: E402
from runai_model_streamer import SafetensorsStreamer  # noqa: E402


def processor():
    t = os.times()
    return t.user + t.system


if FILES[0] == "--from":
    with open(FILES[1]) as fifo:
        FILES = fifo.read().splitlines()
began, used = time.monotonic(), processor()
tensors = {}
with SafetensorsStreamer() as streamer:
    streamer.stream_files(FILES)
    for name, tensor in streamer.get_tensors():
        tensors[name] = tensor
    seconds, cpu = time.monotonic() - began, processor() - used
    size, crc = 0, 0
    for name in sorted(tensors):
        view = memoryview(tensors[name].reshape(-1).view(torch.uint8).numpy()).cast("B")
        size += len(view)
        crc = google_crc32c.extend(crc, view.tobytes())
print(json.dumps({"seconds": seconds, "cpu_s": cpu, "bytes": size, "crc32c": crc}))
sys.stdout.flush()
os._exit(0)  # the streamer's threads are slow to end
