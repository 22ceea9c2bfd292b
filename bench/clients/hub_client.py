"""Runs huggingface_hub and transformers against an embedded Hub, one line a check.

usage: hub_client.py URL FOLDER

FOLDER is what the Hub at URL serves with --dir: org/small (a model of a few files), org/many (more
files than fit on a page of the tree) and org/gated (served with --gated). hub.sh makes all that.
Exit status 1 when a check failed.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from urllib.parse import quote, urlsplit

URL, FOLDER = sys.argv[1], Path(sys.argv[2])
HOME = Path(tempfile.mkdtemp(prefix="hub-client-"))
for name in [k for k in os.environ if k.startswith(("HF_", "HUGGING", "TRANSFORMERS_")) or k.lower().endswith("_proxy")]:
    del os.environ[name]  # nothing of the person's own set-up, above all no token
os.environ |= {"HF_ENDPOINT": URL, "HF_HOME": str(HOME), "HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
               "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": "hf_a_token_for_this_test"}

import huggingface_hub as hf  # noqa: E402: it reads the environment when it is imported
from huggingface_hub import errors  # noqa: E402
from huggingface_hub.utils._http import default_client_factory  # noqa: E402

FAULT = "x-goog-emulator-instructions"
SMALL, MANY, GATED = "org/small", "org/many", "org/gated"
GEMMA = "google/gemma-3-270m-it"


class Wire:
    """What the client sends, and the faults it asks the Hub for on the way."""

    def __init__(self):
        self.sent, self.faults = [], []

    def __call__(self, request):
        self.sent.append(request)
        for i, (part, fault) in enumerate(self.faults):
            if part in f"{request.method} {request.url}":
                request.headers[FAULT] = fault
                del self.faults[i]
                break

    def ranges(self):
        return [r.headers["range"] for r in self.sent if "range" in r.headers]


wire = Wire()


def client_with_wire():
    client = default_client_factory()
    client.event_hooks = {"request": [*client.event_hooks["request"], wire]}
    return client


hf.set_client_factory(client_with_wire)


def sha256(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def files(root):
    """Paths below root, without what the client keeps for itself."""
    paths = (p.relative_to(root) for p in Path(root).rglob("*") if p.is_file())
    return sorted(str(p) for p in paths if p.parts[0] not in (".cache", ".git"))


def same(got, repo):
    """Compares a directory with the repository's folder, byte for byte; returns what was compared."""
    want = FOLDER / repo
    assert files(got) == files(want), f"files differ: {len(files(got))} and {len(files(want))}"
    for p in files(want):
        assert sha256(Path(got) / p) == sha256(want / p), f"{p} differs"
    return f"{len(files(want))} files, sha256 equal"


def raises(kind, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except kind as e:
        return f"{type(e).__name__}"
    raise AssertionError(f"no {kind.__name__}")


def command(*args, **env):
    done = subprocess.run([str(Path(sys.executable).parent / "hf"), *args], env=os.environ | env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-500:]
    return done.stdout.strip()


def fresh(name):
    return str(HOME / "fresh" / name)


def check_command_downloads_a_repository():
    return same(command("download", SMALL, "--quiet"), SMALL)


def check_command_into_a_folder():
    command("download", SMALL, "--local-dir", fresh("local"))
    return same(fresh("local"), SMALL)


def check_one_file():
    path = hf.hf_hub_download(SMALL, "sub/notes.txt")
    assert Path(path).read_bytes() == (FOLDER / SMALL / "sub/notes.txt").read_bytes()
    return "sub/notes.txt"


def check_snapshot():
    wire.sent.clear()
    result = same(hf.snapshot_download(SMALL, cache_dir=fresh("snapshot")), SMALL)
    return f"{result}, {len(wire.sent)} requests"


def check_second_time_asks_once():
    hf.snapshot_download(SMALL)
    wire.sent.clear()
    hf.snapshot_download(SMALL)
    assert len(wire.sent) == 1, [str(r.url) for r in wire.sent]
    return "1 request"


def check_token_stays_with_the_hub():
    wire.sent.clear()
    hf.snapshot_download(SMALL, cache_dir=fresh("token"))
    hub = urlsplit(URL).netloc
    told = {r.url.netloc.decode() for r in wire.sent if "authorization" in r.headers}
    hosts = {r.url.netloc.decode() for r in wire.sent}
    assert told == {hub} and len(hosts) == 2, f"token to {told} of {hosts}"
    return "sent to the API's host:port, not to the CDN's"


def check_no_xet():
    wire.sent.clear()
    hf.snapshot_download(SMALL, cache_dir=fresh("xet"))
    asked = [r for r in wire.sent if "xet-read-token" in str(r.url)]
    meta = hf.get_hf_file_metadata(hf.hf_hub_url(SMALL, "model.safetensors"))
    assert not asked and meta.xet_file_data is None
    return "hf_xet is installed, HF_HUB_DISABLE_XET is not set, nobody asked for it"


def check_resume_after_a_cut():
    # The client takes up again at a multiple of 10 MiB, so the cut is above one.
    wire.faults.append(("GET http://" + urlsplit(meta_location()).netloc, "return-broken-stream-after-15000K"))
    wire.sent.clear()
    path = hf.hf_hub_download(SMALL, "model.safetensors", cache_dir=fresh("cut"))
    assert not wire.faults, "the fault was never asked for"
    assert wire.ranges() == ["bytes=10485760-"], wire.ranges()
    assert sha256(path) == sha256(FOLDER / SMALL / "model.safetensors")
    return wire.ranges()[0]


def meta_location():
    return hf.get_hf_file_metadata(hf.hf_hub_url(SMALL, "model.safetensors")).location


def check_a_range_that_is_ignored():
    cdn = "GET http://" + urlsplit(meta_location()).netloc
    wire.faults += [(cdn, "return-broken-stream-after-15000K"), (cdn, "ignore-range")]
    path = hf.hf_hub_download(SMALL, "model.safetensors", cache_dir=fresh("ignored"))
    assert not wire.faults and sha256(path) == sha256(FOLDER / SMALL / "model.safetensors")
    return "started again, sha256 equal"


def check_too_many_requests():
    wire.faults.append(("/tree/", "return-429"))
    wire.sent.clear()
    n = len(list(hf.HfApi().list_repo_tree(SMALL, recursive=True)))
    assert not wire.faults and len(wire.sent) == 2
    return f"waited, then {n} entries"


def check_corrupt_body_is_kept():
    # Not a wish but a fact about this client, and why headstart checks: it compares lengths only.
    wire.faults.append(("GET http://" + urlsplit(meta_location()).netloc, "return-corrupted-data"))
    path = hf.hf_hub_download(SMALL, "model.safetensors", cache_dir=fresh("corrupt"))
    assert sha256(path) != sha256(FOLDER / SMALL / "model.safetensors")
    return "one wrong bit, accepted"


def check_tree_has_pages():
    wire.sent.clear()
    got = [e.path for e in hf.HfApi().list_repo_tree(MANY, recursive=True) if isinstance(e, hf.RepoFile)]
    pages = [r for r in wire.sent if "/tree/" in str(r.url)]
    assert sorted(got) == files(FOLDER / MANY) and len(pages) == 2, f"{len(got)} files on {len(pages)} pages"
    return f"{len(got)} files on {len(pages)} pages"


def check_tree_tells_the_digests():
    for e in hf.HfApi().list_repo_tree(SMALL, recursive=True):
        if isinstance(e, hf.RepoFile):
            body = (FOLDER / SMALL / e.path).read_bytes()
            assert e.size == len(body)
            want = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
            assert (e.lfs.sha256 == hashlib.sha256(body).hexdigest()) if e.lfs else (e.blob_id == want), e
    return "sha256 of LFS files, git sha1 of the others"


def check_info():
    info = hf.HfApi().model_info(SMALL, files_metadata=True, securityStatus=True)
    lfs = {s.rfilename: s.lfs.sha256 for s in info.siblings if s.lfs}
    assert len(info.sha) == 40 and lfs == {"model.safetensors": sha256(FOLDER / SMALL / "model.safetensors")}
    only = hf.HfApi().model_info(SMALL, expand=["sha"])
    assert only.sha == info.sha and only.siblings is None
    return info.sha


def check_paths_info():
    got = hf.HfApi().get_paths_info(SMALL, ["config.json", "sub", "none"])
    assert [e.path for e in got] == ["config.json", "sub"]
    return "a file, a directory, not the third"


def check_refs_and_commit():
    refs = hf.HfApi().list_repo_refs(SMALL, include_pull_requests=True)
    sha = hf.HfApi().model_info(SMALL).sha
    assert [(b.name, b.target_commit) for b in refs.branches] == [("main", sha)]
    path = hf.hf_hub_download(SMALL, "config.json", revision=sha, cache_dir=fresh("commit"))
    assert f"/snapshots/{sha}/" in path
    return "main"


def check_exists():
    api = hf.HfApi()
    assert api.repo_exists(SMALL) and not api.repo_exists("org/none")
    assert api.file_exists(SMALL, "config.json") and not api.file_exists(SMALL, "none")
    assert api.revision_exists(SMALL, "main") and not api.revision_exists(SMALL, "none")
    return "repo, file, revision"


def check_who():
    assert hf.whoami()["name"] == "user"
    hf.auth_check(SMALL)
    return "user; auth_check passes"


def check_missing_repository():
    return raises(errors.RepositoryNotFoundError, hf.snapshot_download, "org/none") + ", " + \
        raises(errors.RepositoryNotFoundError, hf.hf_hub_download, "org/none", "config.json", token=False)


def check_missing_revision():
    return raises(errors.RevisionNotFoundError, hf.snapshot_download, SMALL, revision="none") + ", " + \
        raises(errors.RevisionNotFoundError, hf.hf_hub_download, SMALL, "config.json", revision="refs/pr/1")


def check_missing_file():
    return raises(errors.RemoteEntryNotFoundError, hf.hf_hub_download, SMALL, "none", cache_dir=fresh("entry"))


def check_gated():
    assert hf.HfApi().model_info(GATED).gated == "manual", "metadata is public"
    anonymous = raises(errors.GatedRepoError, hf.hf_hub_download, GATED, "config.json", token=False)
    return f"{anonymous}, {raises(errors.GatedRepoError, hf.snapshot_download, GATED)}, " + \
        raises(errors.GatedRepoError, hf.auth_check, GATED)


def check_disabled():
    message = "return-403,header=X-Error-Message:" + quote("Access to this resource is disabled.")
    wire.faults.append(("/api/models/", message))
    return raises(errors.DisabledRepoError, hf.HfApi().model_info, SMALL)


def check_bad_token():
    message = "return-401,header=X-Error-Message:" + quote("Invalid credentials in Authorization header")
    wire.faults.append(("/api/models/", message))
    try:
        hf.HfApi().model_info(SMALL)
    except errors.RepositoryNotFoundError as e:
        raise AssertionError("taken for a missing repository") from e
    except errors.HfHubHTTPError as e:
        return f"{type(e).__name__}, not RepositoryNotFoundError"


def check_offline():
    hf.snapshot_download(SMALL)
    path = command("download", SMALL, "--quiet", HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    return same(path, SMALL)


def check_gemma_downloads():
    path = command("download", GEMMA, "--quiet")
    entries = [e for e in hf.HfApi().list_repo_tree(GEMMA, recursive=True) if isinstance(e, hf.RepoFile)]
    assert files(path) == sorted(e.path for e in entries)
    lfs = [e for e in entries if e.lfs]
    for e in lfs:
        assert sha256(Path(path) / e.path) == e.lfs.sha256, e.path
    return f"{len(entries)} files, {sum(e.size for e in entries):,} bytes, sha256 of {len(lfs)} LFS files equal"


def check_transformers_reads_config():
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(GEMMA)
    assert config.model_type == "gemma3_text", config.model_type
    return f"{config.model_type}, {config.num_hidden_layers} layers"


def check_transformers_tokenizes():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(GEMMA)
    text = "The weights are there before anybody asks. Ωμέγα 🚀 x = y**2\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True)
    assert chat.endswith("<start_of_turn>model\n"), chat
    return f"{len(tokenizer):,} tokens, {len(ids)} for a line, chat template works"


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
        wire.faults.clear()
        print(f"{mark} {name}: {text} ({time.monotonic() - start:.1f} s)", flush=True)
    print(f"{len(checks) - failed} of {len(checks)} checks passed with huggingface_hub {hf.__version__}")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        status = main()
    finally:
        subprocess.run(["rm", "-rf", str(HOME)], check=False)
    sys.exit(status)
