"""Our server beside `transformers serve`, on one random model shaped as OLMoE and the same load, in turns.

    python bench/transformers_serve.py [--clients 16] [--rounds 2] [--tokens 24] [--threads 1]

Each server runs in a process of its own; clients stream conversations from both by the same code. Tokens are counted
by the pieces of the streams, whose ids each end at `max_tokens`. Beside tokens a second, tokens for each second that
the server's process had of the cores are printed, which other work on the machine hardly changes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
WORDS = 50_304

OURS = """
import sys
from pathlib import Path
import torch, uvicorn
from serving.api import Api
from serving.configuration import ServerConfiguration
from serving.request_identity import RequestIdentity
torch.set_num_threads(int(sys.argv[3]))
api = Api(ServerConfiguration(models={"model": Path(sys.argv[1])}))
uvicorn.run(RequestIdentity(api), host="127.0.0.1", port=int(sys.argv[2]), log_level="error", lifespan="on")
"""


def make_model(folder: Path) -> None:
    """An OLMoE of 131 million random parameters, with a tokenizer whose every word is an id."""
    import tokenizers
    import torch
    import transformers

    sys.path.insert(0, str(ROOT))
    from evals.moe_bench.concurrent import SHAPE
    from evals.moe_bench.generation import random_model

    model = random_model(SHAPE, torch.float32)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    words = {f"w{number}": number for number in range(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server in a process of its own, until `stop`."""

    def __init__(self, name: str, command: list[str], port: int, model: str, threads: int) -> None:
        self.name, self.model, self.url = name, model, f"http://127.0.0.1:{port}"
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment)
        while True:
            if self.process.poll() is not None:
                raise SystemExit(f"{name} ended at its start")
            try:
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.5)

    def cpu_s(self) -> float:
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


def one_round(server: Server, clients: int, prompt: int, tokens: int, seed: int) -> tuple[int, float, float]:
    """Tokens, seconds, and seconds of the processor."""
    counted: list[int] = []

    def ask(client: int) -> None:
        draw = random.Random(1000 * seed + client)
        text = " ".join(f"w{draw.randrange(2, WORDS)}" for _ in range(prompt))
        body = {
            "model": server.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
        }
        pieces = 0
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=600) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    choices = json.loads(line[6:])["choices"]
                    pieces += bool(choices and choices[0]["delta"].get("content"))
        counted.append(tokens if pieces else 0)

    threads = [threading.Thread(target=ask, args=(client,)) for client in range(clients)]
    started, had = time.perf_counter(), server.cpu_s()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counted), time.perf_counter() - started, server.cpu_s() - had


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for option, default in (("clients", 16), ("rounds", 2), ("prompt", 24), ("tokens", 24), ("threads", 1)):
        parser.add_argument(f"--{option}", type=int, default=default)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        make_model(folder)
        ports = [free_port(), free_port(), free_port()]
        serve = [str(Path(sys.executable).parent / "transformers"), "serve", str(folder), "--device", "cpu"]
        threads = given.threads
        servers = [
            Server(
                "lexpert",
                [sys.executable, "-c", OURS, str(folder), str(ports[0]), str(threads)],
                ports[0],
                "model",
                threads,
            ),
            Server("transformers serve", [*serve, "--port", str(ports[1])], ports[1], str(folder), threads),
            Server(
                "… --continuous-batching",
                [*serve, "--port", str(ports[2]), "--continuous-batching"],
                ports[2],
                str(folder),
                threads,
            ),
        ]
        try:
            for number in range(given.rounds + 1):
                for server in servers:
                    clients = given.clients if number else 2
                    tokens, seconds, cpu = one_round(server, clients, given.prompt, given.tokens, number)
                    print(
                        f"{'round ' + str(number) if number else 'warm-up':8} {server.name:24} {tokens} tokens, "
                        f"{tokens / seconds:.1f} a second, {tokens / cpu:.1f} a second of the processor",
                        flush=True,
                    )
        finally:
            for server in servers:
                server.stop()


if __name__ == "__main__":
    main()
