"""Loads a causal model through HF_ENDPOINT with transformers on the CPU and generates a few tokens.

usage: transformers_load.py ENDPOINT REPO [PROMPT]

Prints one JSON object: {"model", "dtype", "parameters", "load_s", "prompt", "tokens", "text"}. The
files go to a temporary HF_HOME that is removed. Needs torch, so it is not run by hub.sh: any
environment with torch and transformers will do, for example the one that bench/vllm makes.
"""

import json
import os
import sys
import tempfile
import time


def main(endpoint, repo, prompt="The weights are"):
    for name in [k for k in os.environ if k.startswith(("HF_", "HUGGING", "TRANSFORMERS_")) or k.lower().endswith("_proxy")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="transformers-load-") as home:
        os.environ |= {"HF_ENDPOINT": endpoint, "HF_HOME": home, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        start = time.monotonic()
        tokenizer = AutoTokenizer.from_pretrained(repo)
        model, info = AutoModelForCausalLM.from_pretrained(repo, dtype="auto", output_loading_info=True)
        loaded = time.monotonic() - start
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
            if info.get(kind):
                sys.exit(f"{repo}: {kind}: {list(info[kind])[:5]}")
        inputs = tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1]:].tolist()
        json.dump({"model": repo, "dtype": str(model.dtype), "parameters": model.num_parameters(), "load_s": round(loaded, 2),
                   "prompt": prompt, "tokens": out, "text": tokenizer.decode(out)}, sys.stdout)
        print()


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
