"""Downloads through Xet, with hf_xet, from an embedded Hub that offers it: one line a check.

usage: xet_client.py URL FOLDER LOG

The Hub at URL serves FOLDER as hub.sh makes it, with --xet, and writes its requests to LOG (--log-requests). hf_xet
is a library in Rust whose requests Python cannot see, so the server's word is taken. Exit status 1 when a check failed.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from importlib.metadata import version
from pathlib import Path

URL, FOLDER, LOG = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
HOME = Path(tempfile.mkdtemp(prefix="xet-client-"))
for name in [k for k in os.environ if k.startswith(("HF_", "HUGGING", "TRANSFORMERS_")) or k.lower().endswith("_proxy")]:
    del os.environ[name]  # nothing of the person's own set-up, above all no token
os.environ |= {"HF_ENDPOINT": URL, "HF_HOME": str(HOME), "HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
               "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": "hf_a_token_for_this_test"}

import hf_xet  # noqa: E402
import huggingface_hub as hf  # noqa: E402: it reads the environment when it is imported

SMALL, MANY, GEMMA = "org/small", "org/many", "google/gemma-3-270m-it"


class Journal:
    """What the Hub answered since this was made."""

    def __init__(self):
        self.start = LOG.stat().st_size

    def paths(self, host, status):
        with LOG.open() as f:
            f.seek(self.start)
            lines = [dict(re.findall(r'(\w+)=("[^"]*"|\S+)', line)) for line in f if " msg=answered " in line]
        return [r["path"].strip('"') for r in lines if r["host"] == host and r["status"] == str(status)]

    def through_xet(self):
        """Fails where a file's bytes came another way; returns how many requests it took."""
        plans, ranges = self.paths("cas", 200), self.paths("cdn", 206)
        assert plans and all(p.startswith("/v2/reconstructions/") for p in plans), plans
        assert ranges and all(p.startswith("/xorbs/") for p in ranges), ranges
        assert not self.paths("cdn", 200), "a file came over plain HTTP"
        return f"{len(plans)} plans, {len(ranges)} ranges of xorbs"


def sha256(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def command(*args, **env):
    done = subprocess.run([str(Path(sys.executable).parent / "hf"), *args], env=os.environ | env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-500:]
    return done.stdout.strip()


def entries(repo):
    return [e for e in hf.HfApi().list_repo_tree(repo, recursive=True) if isinstance(e, hf.RepoFile)]


def check_a_folder():
    journal = Journal()
    path = Path(command("download", SMALL, "--quiet"))
    for want in (p for p in (FOLDER / SMALL).rglob("*") if p.is_file()):
        assert sha256(path / want.relative_to(FOLDER / SMALL)) == sha256(want), want
    return f"sha256 equal, {journal.through_xet()}"


def check_gemma():
    journal = Journal()
    path = Path(command("download", GEMMA, "--quiet"))
    lfs = [e for e in entries(GEMMA) if e.lfs]
    for e in lfs:
        assert sha256(path / e.path) == e.lfs.sha256, e.path
    return f"{sum(e.size for e in lfs):,} bytes, sha256 of {len(lfs)} LFS files equal, {journal.through_xet()}"


def check_off():
    journal = Journal()
    path = Path(command("download", SMALL, "--quiet", HF_HUB_DISABLE_XET="1", HF_HUB_CACHE=str(HOME / "off")))
    assert sha256(path / "model.safetensors") == sha256(FOLDER / SMALL / "model.safetensors")
    assert not journal.paths("cas", 200) and journal.paths("cdn", 200)
    return "HF_HUB_DISABLE_XET=1: plain HTTP, sha256 equal"


def check_hashes():
    # A file of one chunk: for larger ones the Hub's chunks have boundaries that follow from their content.
    (got,) = [e.xet_hash for e in entries(MANY) if e.path == "model.safetensors"]
    (want,) = hf_xet.hash_files([str(FOLDER / MANY / "model.safetensors")])
    assert got == want.hash, (got, want.hash)
    return f"{got[:16]}… as hf_xet.hash_files says"


def main():
    checks = [(name.removeprefix("check_").replace("_", " "), f) for name, f in globals().items() if name.startswith("check_")]
    failed = 0
    for name, check in checks:
        start = time.monotonic()
        try:
            mark, text = "ok  ", check()
        except Exception as e:  # noqa: BLE001: whatever it is, it is this check's result
            failed += 1
            mark, text = "FAIL", f"{type(e).__name__}: {str(e).splitlines()[0][:300] if str(e) else ''}"
            traceback.print_exc(file=sys.stderr)
        print(f"{mark} xet {name}: {text} ({time.monotonic() - start:.1f} s)", flush=True)
    print(f"{len(checks) - failed} of {len(checks)} checks passed with hf_xet {version('hf_xet')}")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        status = main()
    finally:
        subprocess.run(["rm", "-rf", str(HOME)], check=False)
    sys.exit(status)
