"""vLLM's answers, as vLLM 0.32 gives them, from a small model in this process.

Shapes and texts of answers and errors were recorded from a real server (docs/servers.md). A
fault is a function of the good answer's (status, headers, body) that is used up once.
"""

import base64
import io
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

Answer = tuple[int, dict[str, str], Any]
Fault = Callable[[Answer], Answer]


class FakeVllm:
    """One model behind HTTP on a free port of 127.0.0.1."""

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "served",
        max_logprobs: int = 20,
        max_model_len: int = 64,
        key: str = "",
        dev_mode: bool = True,
        scores_ids: bool = False,
        port: int = 0,
    ) -> None:
        self.folder, self.name, self.key = folder, name, key
        self.max_model_len, self.dev_mode, self.scores_ids = max_model_len, dev_mode, scores_ids
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.reload()
        self.rows = self.model.config.vocab_size
        self.text = [self.tokenizer.decode([i]) for i in range(self.rows)]
        self.max_logprobs = self.rows if max_logprobs == -1 else max_logprobs
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.asked: list[tuple[str, Any]] = []
        self.keys: list[str | None] = []
        self.reloads = True
        self.dead = False
        self.port = port
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.answer(None)

            def do_POST(self) -> None:
                length = int(self.headers.get("content-length", 0))
                self.answer(json.loads(self.rfile.read(length)) if length else None)

            def answer(self, body: Any) -> None:
                if fake.dead:
                    self.close_connection = True
                    return
                fake.asked.append((self.path, body))
                fake.keys.append(self.headers.get("authorization"))
                good = fake.respond(self.path, body, self.headers.get("authorization"))
                with fake.lock:
                    waiting = fake.faults[self.path]
                    fault = waiting.pop(0) if waiting else None
                status, headers, content = fault(good) if fault else good
                if fake.dead:  # killed while it computed
                    self.close_connection = True
                    return
                try:
                    fake.send(self, status, headers, content)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass

        self.lock = threading.Lock()
        self.http = Quiet(("127.0.0.1", port), Handler)
        self.port = self.http.server_address[1]
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def kill(self) -> None:
        """Answer nobody any more, open connections included."""
        self.dead = True
        self.close()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def reload(self) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(self.folder).eval()

    def count(self, path: str) -> int:
        return sum(asked == path for asked, _ in self.asked)

    @staticmethod
    def send(handler: BaseHTTPRequestHandler, status: int, headers: Any, content: Any) -> None:
        if content is DROP:
            handler.close_connection = True
            return
        if content is ENDLESS_HEADERS:
            for place in range(200):
                handler.wfile.write(
                    f"x-{place}: more\r\n".encode() if place else b"HTTP/1.1 200 OK\r\n"
                )
                time.sleep(0.05)
        drip = isinstance(content, Drip)
        data = content.data if drip else content
        if not isinstance(data, bytes):
            data = json.dumps(data).encode()
        handler.send_response(status)
        for key, value in headers.items():
            handler.send_header(key, value)
        handler.send_header("content-length", str(len(data)))
        handler.end_headers()
        if not drip:
            handler.wfile.write(data)
            return
        for place in range(0, len(data), content.size):
            handler.wfile.write(data[place : place + content.size])
            handler.wfile.flush()
            time.sleep(content.pause)

    # --- what vLLM says ----------------------------------------------------------------------

    def respond(self, path: str, body: Any, authorization: str | None) -> Answer:
        if self.key and path.startswith("/v1") and authorization != f"Bearer {self.key}":
            return 401, {}, {"error": f"Unauthorized: {authorization}"}
        if path == "/version":
            return 200, {}, {"version": "0.32.0"}
        if path == "/v1/models":
            model = {"id": self.name, "root": str(self.folder), "max_model_len": self.max_model_len}
            return 200, {}, {"object": "list", "data": [model]}
        if path == "/v1/completions":
            return self.complete(body)
        if path == "/inference/v1/generate":
            return self.generate(body)
        if path in ("/collective_rpc", "/reset_prefix_cache") and self.dev_mode:
            if path == "/collective_rpc" and self.reloads:
                self.reload()
            return 200, {}, {"results": [None]}
        return 404, {}, {"detail": "Not Found"}

    def complete(self, body: Any) -> Answer:
        if body["model"] != self.name:
            said = f"The model `{body['model']}` does not exist. Valid aliases: {self.name}."
            return error(404, said, "NotFoundError")
        prompts = body["prompt"]
        if isinstance(prompts[0], int):
            prompts = [prompts]
        if any(i >= self.rows for prompt in prompts for i in prompt):
            return error(400, f"Token id {max(map(max, prompts))} is out of vocabulary")
        if any(len(p) + body["max_tokens"] > self.max_model_len for p in prompts):
            return error(400, f"This model's maximum context length is {self.max_model_len}")
        listed = body.get("prompt_logprobs")
        if listed is not None and listed > self.max_logprobs:
            return error(400, too_many(listed, self.max_logprobs))
        choices = []
        for index, prompt in enumerate(prompts):
            choice = {"index": index, "text": "", "stop_reason": None, "prompt_logprobs": None}
            choice |= self.sample(prompt, body)
            if listed is not None:
                choice["prompt_logprobs"] = self.prompt_logprobs(prompt, listed)
            if body.get("return_token_ids"):
                choice["prompt_token_ids"] = prompt
            else:
                choice.pop("token_ids")
            choices.append(choice)
        return 200, {}, {"object": "text_completion", "model": self.name, "choices": choices}

    @torch.no_grad()
    def prompt_logprobs(self, ids: list[int], listed: int) -> list[Any]:
        logprobs = self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        places: list[Any] = [None]
        for row, token in zip(logprobs[:-1], ids[1:], strict=True):
            ranks = row.argsort(descending=True).argsort() + 1
            best = row.topk(listed).indices.tolist() if listed else []
            places.append(
                {
                    str(i): {
                        "logprob": max(row[i].item(), -9999.0),
                        "rank": int(ranks[i]),
                        "decoded_token": self.text[i],
                    }
                    for i in dict.fromkeys([token, *best])
                }
            )
        return places

    @torch.no_grad()
    def sample(self, prompt: list[int], body: Any) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(body.get("seed", 0))
        ids, logprobs = list(prompt), []
        stops = set(body.get("stop_token_ids", ()))
        reason = "length"
        for _ in range(body["max_tokens"]):
            logits = self.model(torch.tensor([ids])).logits[0, -1].float()
            raw = logits.log_softmax(-1)
            if body["temperature"] == 0:
                token = int(logits.argmax())
            else:
                p = (logits / body["temperature"]).softmax(-1)
                token = int(torch.multinomial(p, 1, generator=generator))
            ids.append(token)
            logprobs.append(raw[token].item())
            if token in stops:
                reason = "stop"
                break
        found: dict[str, Any] = {"token_ids": ids[len(prompt) :], "finish_reason": reason}
        if body.get("logprobs") is not None:
            found["logprobs"] = {"token_logprobs": logprobs}
        return found

    @torch.no_grad()
    def generate(self, body: Any) -> Answer:
        if not self.scores_ids:
            said = "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out"
            return error(403, said, "PermissionDeniedError")
        params, ids = body["sampling_params"], body["token_ids"]
        rows, start = params["prompt_logprob_token_ids"], params.get("prompt_logprob_start") or 0
        if len(rows) != len(ids) - 1 - start:
            return error(400, f"prompt_logprob_token_ids has {len(rows)} rows")
        logprobs = self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1).numpy()
        width = max(map(len, rows))
        table = np.full((len(rows), width), -np.inf, dtype=np.float32)
        for place, row in enumerate(rows):
            table[place, : len(row)] = logprobs[start + place][row]
        with io.BytesIO() as buffer:
            np.save(buffer, table, allow_pickle=False)
            encoded = base64.b64encode(buffer.getvalue()).decode()
        listed = self.prompt_logprobs(ids, params["prompt_logprobs"])
        return 200, {}, {"prompt_logprobs": listed, "prompt_token_id_logprobs": encoded}


class Drip:
    """Content that comes a few bytes at a time."""

    def __init__(self, data: bytes, size: int, pause: float) -> None:
        self.data, self.size, self.pause = data, size, pause


ENDLESS_HEADERS = object()
"""Content that never comes, because the headers do not end."""
DROP = object()
"""Content that never comes: the connection closes."""


def error(status: int, message: str, kind: str = "BadRequestError") -> Answer:
    return status, {}, {"error": {"message": message, "type": kind, "code": status}}


def too_many(asked: int, most: int) -> str:
    return (
        f"Requested prompt logprobs of {asked}, which is greater than max allowed: {most} "
        f"(parameter=prompt_logprobs, value={asked})"
    )


# --- faults ----------------------------------------------------------------------------------


def status(code: int, said: str = "no", **headers: str) -> Fault:
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return lambda good: (code, named, error(code, said)[2])


def dropped(good: Answer) -> Answer:
    return 200, {}, DROP


def slow(seconds: float) -> Fault:
    def fault(good: Answer) -> Answer:
        time.sleep(seconds)
        return good

    return fault


def endless_headers(good: Answer) -> Answer:
    return 200, {}, ENDLESS_HEADERS


def dripping(pause: float) -> Fault:
    return lambda good: (200, {}, Drip(json.dumps(good[2]).encode(), 10, pause))


def content(data: bytes) -> Fault:
    return lambda good: (200, {}, data)


def edited(change: Callable[[list[Any]], Any]) -> Fault:
    """The good answer after `change(choices)` edited it in place."""

    def fault(good: Answer) -> Answer:
        body = json.loads(json.dumps(good[2]))
        change(body["choices"])
        return good[0], good[1], body

    return fault
