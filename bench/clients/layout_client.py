"""Uses a model by its name on the Hub from a read-only Hugging Face cache, offline: one line a check.

usage: layout_client.py TARGET REPO COMMIT LABEL

TARGET is what `headstart publish REPO TARGET --layout hf` made. With torch it loads the weights too; with
vLLM it asks where --model REPO leads. Exit status 1 when a check failed.
"""

import importlib.util
import os
import sys
import traceback
from pathlib import Path

TARGET, REPO, COMMIT, LABEL = sys.argv[1:]
how = {"HF_HUB_CACHE": f"{TARGET}/hub"} if "complete" not in LABEL else {"HF_HOME": TARGET}
for name in [k for k in os.environ if k.startswith(("HF_", "HUGGING", "TRANSFORMERS_")) or k.lower().endswith("_proxy")]:
    del os.environ[name]
os.environ |= how | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

import huggingface_hub as hf  # noqa: E402: it reads the environment when it is imported
from transformers import AutoConfig, AutoTokenizer  # noqa: E402

SNAPSHOT = Path(TARGET, "hub", "models--" + REPO.replace("/", "--"), "snapshots", COMMIT)


def finds_the_snapshot():
    assert hf.snapshot_download(REPO) == str(SNAPSHOT)
    assert hf.snapshot_download(REPO, revision="main") == str(SNAPSHOT)
    assert hf.snapshot_download(REPO, revision=COMMIT) == str(SNAPSHOT)


def finds_a_file():
    assert hf.hf_hub_download(REPO, "config.json") == str(SNAPSHOT / "config.json")


def says_what_is_missing():
    for kind, call in (("file", lambda: hf.hf_hub_download(REPO, "no-such-file")), ("revision", lambda: hf.snapshot_download(REPO, revision="v9"))):
        try:
            call()
        except hf.errors.LocalEntryNotFoundError:
            continue
        raise AssertionError(f"a {kind} that is not there was found")


def reads_the_config():
    assert AutoConfig.from_pretrained(REPO).model_type == "gemma3_text"


def reads_the_tokenizer():
    tokenizer = AutoTokenizer.from_pretrained(REPO)
    text = "The weights are there."
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def loads_the_weights_and_generates():
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(REPO)
    model = AutoModelForCausalLM.from_pretrained(REPO, dtype="auto")
    inputs = tokenizer("The weights are", return_tensors="pt")
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert out.shape[1] > inputs["input_ids"].shape[1]


def is_the_model_of_vllm():
    from vllm.engine.arg_utils import EngineArgs

    assert EngineArgs(model=REPO).model == str(SNAPSHOT)


def scans_the_cache():
    info = hf.scan_cache_dir()
    assert [(r.repo_id, [(v.commit_hash, set(v.refs)) for v in r.revisions]) for r in info.repos] == [(REPO, [(COMMIT, {"main"})])], info


checks = [finds_the_snapshot, finds_a_file, says_what_is_missing, reads_the_config, reads_the_tokenizer, scans_the_cache]
if importlib.util.find_spec("torch"):
    checks.append(loads_the_weights_and_generates)
if importlib.util.find_spec("vllm"):
    checks.append(is_the_model_of_vllm)
status = 0
for check in checks:
    try:
        check()
        print(f"ok   {LABEL}, {'='.join(*how.items())}: {check.__name__.replace('_', ' ')}")
    except Exception:
        traceback.print_exc()
        print(f"FAIL {LABEL}: {check.__name__.replace('_', ' ')}")
        status = 1
sys.exit(status)
