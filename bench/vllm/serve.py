#!/usr/bin/env python3
"""Start vLLM's server on a model, ask it, and print when each step of its start was done.

    serve.py --venv DIR MODEL_DIR [--cache DIR] [--log FILE] [--port N] [-- FLAGS OF VLLM...]

The last thing on stdout is one JSON object:

    {"ready": true, "steps": {"NAME": SECONDS, ...}, "phases": [{"name", "start_s", "end_s"}, ...],
     "completion": {"token_ids": [...], "text": "..."}, "chat": {...}}

Seconds count from the start of the server process. Steps are also told on stderr as they happen.
The first token is that of a chat which ends with it. All is asked at temperature 0 and without an
end-of-sequence, so the same weights give the same token ids. Nothing of the server is left when this ends, by itself, by SIGINT or SIGTERM, or with --follow
when its parent is gone: no process, no shared memory, no socket. Exit status: 0 when the server
answered, 1 when not (the object is printed all the same, with the end of the log). Python 3.9, no packages.
"""

import argparse
import collections
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

# One pair per step: what is done then, and the line of vLLM 0.32's log that shows it. In their usual order.
STEPS = (
    ("api_server_imported", "non-default args:"),
    ("config_read", "Resolved architecture:"),
    ("engine_imported", "Initializing a V1 LLM engine"),
    ("worker_imported", "Starting to load model"),
    ("weights_wanted", "Filesystem type for checkpoints|Loading safetensors using Runai"),
    ("weights_loaded", "Loading weights took|Loading safetensors using Runai Model Streamer: 100%"),
    ("engine_ready", r"init engine \(profile"),
    ("http_up", "Application startup complete"),
)

# What lies between two steps; a phase whose steps were not both seen is left out.
PHASES = (
    ("imports: API server", None, "api_server_imported"),
    ("config, headers, tokenizer", "api_server_imported", "config_read"),
    ("imports: engine", "config_read", "engine_imported"),
    ("imports: worker", "engine_imported", "worker_imported"),
    ("weights", "weights_wanted", "weights_loaded"),
    ("engine set-up", "weights_loaded", "engine_ready"),
    ("tokenizer again, HTTP", "engine_ready", "ready"),
    ("first answers", "ready", "answered"),
)

# The fastest start on few cores: nothing is compiled, the context is short, one GiB for the KV cache.
FLAGS = ("--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "8")
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONUNBUFFERED": "1",
}


class Clock:
    def __init__(self):
        self.zero = time.monotonic()

    def __call__(self):
        return round(time.monotonic() - self.zero, 2)


class Server:
    """The server process, its log, and the steps seen in the log so far."""

    def __init__(self, command, environment, log, clock):
        self.clock, self.steps = clock, {}
        self.tail = collections.deque(maxlen=30)
        libc = ctypes.CDLL(None)
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True, text=True, errors="replace",
            preexec_fn=lambda: libc.prctl(1, signal.SIGTERM))  # PR_SET_PDEATHSIG: not even SIGKILL of this script leaves it
        self.reader = threading.Thread(target=self.read, args=(log,), daemon=True)
        self.reader.start()

    def read(self, log):
        for line in self.process.stdout:
            log.write(f"{self.clock():8.2f} {line}")
            self.tail.append(line.rstrip())
            for name, pattern in STEPS:
                if name not in self.steps and re.search(pattern, line):
                    self.reached(name)

    def reached(self, name):
        self.steps[name] = self.clock()
        print(f"{self.steps[name]:7.1f} s  vLLM: {name.replace('_', ' ')}", file=sys.stderr, flush=True)

    def running(self):
        return self.process.poll() is None

    def stop(self):
        """Asks the parent to end. Then ends what is left of its process group, the processes last that
        Python starts to remove the shared memory of others: they do it when the others are gone."""
        if self.running():
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                pass
        for pid, command in self.group():
            if b"resource_tracker" not in command:
                kill(pid)
        end = time.monotonic() + 10
        while time.monotonic() < end and (self.running() or self.group()):
            time.sleep(0.05)
        for pid, _ in self.group():
            kill(pid)
        self.process.wait()
        self.reader.join(2)

    def group(self):
        """The live processes of the server's group, which has its first process's number."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/stat", "rb") as f:
                    state, _, group = f.read().rpartition(b")")[2].split()[:3]
                with open(f"/proc/{pid}/cmdline", "rb") as f:
                    command = f.read()
            except OSError:
                continue  # it has just ended
            if int(group) == self.process.pid and state not in b"ZX":
                found.append((int(pid), command))
        return found


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def healthy(base):
    try:
        urllib.request.urlopen(base + "/health", timeout=2).close()
        return True
    except OSError:
        return False


def ask(base, path, **question):
    body = json.dumps({"model": "model", "temperature": 0, "max_tokens": 16, "ignore_eos": True,
                       "return_token_ids": True, **question}).encode()
    request = urllib.request.Request(base + path, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        choice = json.load(answer)["choices"][0]
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    return {"token_ids": choice["token_ids"], "text": text}


def chat(base, **more):
    return ask(base, "/v1/chat/completions", messages=[{"role": "user", "content": "say something"}], **more)


def questions(base):
    return {"completion": ask(base, "/v1/completions", prompt="the quick brown fox"), "chat": chat(base)}


def phases(steps):
    at = {None: 0.0, **steps}
    return [{"name": name, "start_s": at[start], "end_s": at[end]}
            for name, start, end in PHASES if start in at and end in at]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def arguments():
    argv = sys.argv[1:]
    cut = argv.index("--") if "--" in argv else len(argv)
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("model", help="directory of the model, or what --load-format takes instead of one")
    a.add_argument("--venv", required=True, help="the directory that install.sh made")
    a.add_argument("--cache", help="VLLM_CACHE_ROOT; one that is kept saves inspecting the model again")
    a.add_argument("--log", default=os.devnull, help="file for the server's output, each line with its time")
    a.add_argument("--port", type=int, default=0, help="on 127.0.0.1; 0 takes a free one")
    a.add_argument("--timeout", type=float, default=900, help="seconds until the start counts as failed")
    a.add_argument("--follow", action="store_true", help="end when the process that started this one does")
    parsed = a.parse_args(argv[:cut])
    return parsed, argv[cut + 1:]


def main():
    a, more = arguments()
    stop = threading.Event()
    for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(s, lambda *_: stop.set())
    parent = os.getppid()
    venv = os.path.abspath(a.venv)
    environment = {**os.environ, **ENVIRONMENT, "PATH": os.path.join(venv, "bin") + ":" + os.environ.get("PATH", "")}
    if a.cache:
        environment["VLLM_CACHE_ROOT"] = os.path.abspath(a.cache)
    port = a.port or free_port()
    base = f"http://127.0.0.1:{port}"
    command = [os.path.join(venv, "bin", "vllm"), "serve", a.model, "--served-model-name", "model",
               "--host", "127.0.0.1", "--port", str(port), *FLAGS, *more]
    result = {"ready": False}
    with open(a.log, "w", buffering=1) as log, tempfile.TemporaryDirectory(prefix="vllm-") as temporary:
        # vLLM's processes talk over sockets in the temporary directory, and leave them there.
        environment.update(TMPDIR=temporary, VLLM_RPC_BASE_PATH=temporary)
        server = Server(command, environment, log, Clock())
        try:
            while not stop.is_set() and server.running() and server.clock() < a.timeout:
                if a.follow and os.getppid() != parent:
                    break
                if healthy(base):
                    server.reached("ready")
                    chat(base, max_tokens=1)
                    server.reached("first_token")
                    result.update(questions(base), ready=True)
                    server.reached("answered")
                    break
                stop.wait(0.2)
        except (OSError, KeyError, ValueError) as e:
            result["error"] = f"asking the server: {e}"
        finally:
            server.stop()
    if not result["ready"]:
        result.setdefault("error", "vLLM did not become ready" if server.process.returncode in (0, -signal.SIGTERM)
                          else f"vLLM ended with status {server.process.returncode}")
        result["log"] = list(server.tail)
    result.update(steps=server.steps, phases=phases(server.steps))
    print(json.dumps(result), flush=True)
    sys.exit(0 if result["ready"] else 1)


if __name__ == "__main__":
    main()
