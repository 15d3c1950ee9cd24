"""A small server of the Messages API in a process of its own, which can fail in every way a server can.

    with serve() as server:
        ask(base_url=server.url())            # behaves
        ask(base_url=server.url("http_500"))  # fails: the first part of the path names the fault, see FAULTS

It checks the key and the shape of a request, answers by the schema it is given, keeps books on tokens and the
prompt cache, and runs batches. A prompt that holds "ANSWER " is answered by what follows it. `server.seen()`
lists what arrived.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-ant-MARKED-0123456789-MARKED"
ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}
PATIENCE_S = 30.0  # how long a fault that waits goes on, if the client stays


@dataclass
class Server:
    """A running server: where it is, and what it was sent."""

    port: int

    def url(self, fault: str = "") -> str:
        return f"http://127.0.0.1:{self.port}/{fault}".rstrip("/")

    def seen(self) -> list[dict[str, Any]]:
        """Requests since the last call: path, headers without the key, body."""
        with urllib.request.urlopen(f"{self.url()}/seen", timeout=10) as reply:
            return json.loads(reply.read())


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    process = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Server(int(process.stdout.readline()))
    finally:
        process.terminate()
        process.wait(10)


class BadRequest(Exception):
    """What the real API answers with status 400."""


class Books:
    """What the server remembers: requests, cached prompts, batches."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.cached: set[str] = set()
        self.batches: dict[str, dict[str, Any]] = {}

    def message(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = check(body)
        system = body["system"][0]
        usage = {"cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}
        usage["input_tokens"] = len(prompt) // 4 + 1
        size = len(system["text"]) // 4 + 1
        if system.get("cache_control") != {"type": "ephemeral"}:
            usage["input_tokens"] += size
        elif system["text"] in self.cached:
            usage["cache_read_input_tokens"] = size
        else:
            usage["cache_creation_input_tokens"] = size
            self.cached.add(system["text"])
        _, asked, text = prompt.partition("ANSWER ")
        text = text if asked else obey(body["output_config"]["format"]["schema"])
        usage["output_tokens"] = len(text) // 4 + 1
        stop = "end_turn"
        if usage["output_tokens"] > body["max_tokens"]:
            text, stop = text[: 4 * body["max_tokens"]], "max_tokens"
            usage["output_tokens"] = body["max_tokens"]
        return message(text, stop, usage)

    def batch(self, requests: list[dict[str, Any]]) -> dict[str, Any]:
        names = [item["custom_id"] for item in requests]
        if len(set(names)) < len(names) or not names:
            raise BadRequest("requests: custom_id must be unique")
        name = f"msgbatch_{len(self.batches)}"
        self.batches[name] = {"requests": requests, "polls": 0}
        return self.state(name, "")

    def state(self, name: str, url: str) -> dict[str, Any]:
        batch = self.batches[name]
        ended = batch["polls"] > 1
        batch["polls"] += 1
        counts = dict.fromkeys(("canceled", "errored", "expired", "succeeded"), 0)
        if any("BATCH elsewhere" in str(item["params"]["messages"]) for item in batch["requests"]):
            url = url.replace("127.0.0.1", "localhost")  # another host, where the same server listens
        return {
            "id": name,
            "type": "message_batch",
            "processing_status": "ended" if ended else "in_progress",
            "request_counts": {**counts, "processing": len(batch["requests"])},
            "created_at": "2026-10-07T00:00:00Z",
            "expires_at": "2026-10-08T00:00:00Z",
            "results_url": f"{url}/v1/messages/batches/{name}/results" if ended else None,
        }

    def results(self, name: str) -> list[dict[str, Any]]:
        lines = [
            {"custom_id": item["custom_id"], "result": self.result(item["params"])}
            for item in self.batches[name]["requests"]
        ]
        return lines[::-1]  # "not guaranteed to be in the same order"

    def result(self, params: dict[str, Any]) -> dict[str, Any]:
        prompt = params["messages"][0]["content"]
        for word in ("canceled", "expired"):
            if f"BATCH {word}" in prompt:
                return {"type": word}
        if "BATCH refused" in prompt:
            usage = {"input_tokens": 9, "output_tokens": 1}
            return {"type": "succeeded", "message": message("", "refusal", usage)}
        if "BATCH huge" in prompt:
            return {"type": "succeeded", "message": message("x" * 2_000_000, "end_turn", {})}
        if "BATCH errored" in prompt:
            error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
            return {"type": "errored", "error": error}
        return {"type": "succeeded", "message": self.message(params)}


def message(text: Any, stop: Any, usage: Any) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-5-5",
        "content": [{"type": "text", "text": text}] if text != "" else [],
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": usage,
    }


def check(body: dict[str, Any]) -> str:
    """The prompt of a well-formed request. Raises BadRequest as the API would."""
    known = {"model", "max_tokens", "system", "messages", "output_config"}
    if unknown := body.keys() - known:
        raise BadRequest(f"{sorted(unknown)}: Extra inputs are not permitted")
    if not isinstance(body.get("model"), str) or not isinstance(body.get("max_tokens"), int):
        raise BadRequest("model, max_tokens: Field required")
    messages = body["messages"]
    if [m["role"] for m in messages] != ["user"] or not messages[0]["content"]:
        raise BadRequest("messages: one user message is needed")
    config = body["output_config"]
    if config.get("effort") not in (None, "low", "medium", "high", "xhigh", "max"):
        raise BadRequest("output_config.effort: unknown level")
    check_schema(config["format"]["schema"])
    return messages[0]["content"]


def check_schema(schema: dict[str, Any]) -> None:
    """The subset that structured outputs know: closed objects, no ranges, no recursion."""
    if unknown := schema.keys() - {"type", "properties", "required", "additionalProperties", "anyOf"}:
        raise BadRequest(f"output_config.format.schema: property {sorted(unknown)} is not supported")
    if schema.get("type") == "object" and schema.get("additionalProperties") is not False:
        raise BadRequest("output_config.format.schema: additionalProperties must be false")
    for part in [*schema.get("anyOf", ()), *schema.get("properties", {}).values()]:
        check_schema(part)


def obey(schema: dict[str, Any]) -> str:
    """An answer that fits the schema: no plan, the first action only."""
    actions = next(part for part in schema["properties"]["policy"]["anyOf"] if "properties" in part)[
        "required"
    ]
    weights = {name: float(i == 0) for i, name in enumerate(actions)}
    return json.dumps({"why": "the first is fine", "plan": None, "policy": weights, "confidence": 0.5})


class Handler(BaseHTTPRequestHandler):
    """One connection. `fault` is the first part of the path."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits until its head is acknowledged
    books = Books()

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.handle_one()

    def do_POST(self) -> None:
        self.handle_one()

    def handle_one(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path == "/seen":
            seen, self.books.seen = self.books.seen, []
            return self.json(200, seen)
        fault, _, path = self.path[1:].partition("v1/")
        fault = fault.rstrip("/")
        body = json.loads(raw) if raw else None
        headers = {
            k.lower(): v for k, v in self.headers.items() if k.lower() not in ("authorization", "x-api-key")
        }
        self.books.seen.append({"path": self.path, "headers": headers, "body": body})
        key = self.headers.get("x-api-key") or self.headers.get("authorization", "").removeprefix("Bearer ")
        if key != KEY:
            return self.error(401, f"invalid x-api-key: {key}")
        if fault:
            return FAULTS[fault](self)
        try:
            return self.route(path, body)
        except BadRequest as bad:
            return self.error(400, str(bad))

    def route(self, path: str, body: Any) -> None:
        if path == "messages":
            return self.json(200, self.books.message(body))
        if path == "messages/batches":
            for item in body["requests"]:
                check(item["params"])
            return self.json(200, self.books.batch(body["requests"]))
        name = path.removeprefix("messages/batches/").removesuffix("/results")
        if name not in self.books.batches:
            return self.error(404, f"no batch {name}")
        if path.endswith("/results"):
            lines = "".join(json.dumps(line) + "\n" for line in self.books.results(name))
            return self.send(200, lines.encode(), "application/x-jsonl")
        return self.json(200, self.books.state(name, f"http://{self.headers['host']}"))

    def error(self, status: int, words: str, **headers: str) -> None:
        body = {"type": "error", "error": {"type": ERRORS[status], "message": words}}
        self.json(status, body, **headers)

    def json(self, status: int, body: Any, **headers: str) -> None:
        self.send(status, json.dumps(body).encode(), "application/json", **headers)

    def send(self, status: int, body: bytes, kind: str, **headers: str) -> None:
        self.head(status, len(body), kind, **headers)
        self.wfile.write(body)

    def head(self, status: int, length: int, kind: str, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(length), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def drip(self, data: bytes, pause_s: float) -> None:
        with contextlib.suppress(OSError):
            for byte in data:
                self.wfile.write(bytes([byte]))
                time.sleep(pause_s)

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.hang_up()

    def hang_up(self) -> None:
        self.close_connection = True
        self.rfile.close()
        self.wfile.close()
        self.connection.close()
        raise ConnectionAbortedError


GOOD = message('{"confidence": 1}', "end_turn", {"input_tokens": 1, "output_tokens": 1})
THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "s"}


def status(code: int, **headers: str) -> Callable[[Handler], None]:
    return lambda h: h.error(code, f"this is {code}", **headers)


def ok(body: Any) -> Callable[[Handler], None]:
    return lambda h: h.json(200, body)


def raw(
    body: bytes, kind: str = "application/json", code: int = 200, **headers: str
) -> Callable[[Handler], None]:
    return lambda h: h.send(code, body, kind, **headers)


def redirect(code: int) -> Callable[[Handler], None]:
    """To another server: the same one under another name, which would answer."""
    return lambda h: h.send(
        code, b"", "text/plain", location=f"http://localhost:{h.server.server_address[1]}/v1/messages"
    )


def big(code: int) -> Callable[[Handler], None]:
    """10 MB of well-formed JSON, with line ends in it, so that it is no line."""

    def fault(h: Handler) -> None:
        text = json.dumps(message("x" * 99 * 100_000, "end_turn", {}), indent=1).encode()
        with contextlib.suppress(OSError):
            h.send(code, text.replace(b"x" * 99, b"x" * 98 + b"\n"), "application/json")

    return fault


def trickle(h: Handler) -> None:
    body = json.dumps(GOOD).encode()
    h.head(200, len(body), "application/json")
    h.drip(body, 0.1)


def silent(h: Handler) -> None:
    time.sleep(PATIENCE_S)
    h.hang_up()


def cut(h: Handler) -> None:
    h.head(200, 1000, "application/json")
    h.wfile.write(b'{"type": "message", "content": [')
    h.hang_up()


FAULTS: dict[str, Callable[[Handler], None]] = {
    **{f"http_{code}": status(code) for code in ERRORS},
    "http_429": status(429, retry_after="7"),
    "rate_limited_date": lambda h: h.error(
        429, "later", retry_after=formatdate(time.time() + 60, usegmt=True)
    ),
    "rate_limited_words": status(429, retry_after="soon"),
    "http_302_loop": lambda h: h.send(302, b"", "text/plain", location=h.path),
    **{f"redirect_{code}": redirect(code) for code in (301, 302, 303, 307, 308)},
    "redirect_nowhere": lambda h: h.send(307, b"", "text/plain"),
    "silent": silent,
    "trickle": trickle,
    "trickle_head": lambda h: h.drip(b"HTTP/1.1 200 OK\r\nx-slow: " + b"x" * 300, 0.1),
    "reset": Handler.reset,
    "hang_up": Handler.hang_up,
    "cut": cut,
    "html": raw(b"<html>Sign in to the Wi-Fi</html>", "text/html"),
    "html_as_json": raw(b"<html>Sign in to the Wi-Fi</html>"),
    "html_500": raw(b"<html>Bad Gateway</html>", "text/html", 502),
    "truncated_json": raw(json.dumps(GOOD).encode()[:-40]),
    "not_utf8": raw(b'{"type": "message\xff\xfe"}'),
    "deep": raw(b"[" * 100_000),
    "digits": raw(b'{"usage": {"input_tokens": ' + b"9" * 5000 + b"}}"),
    "list": ok([GOOD]),
    "number": ok(5),
    "null": ok(None),
    "text": ok("message"),
    "no_fields": ok({}),
    "no_usage": ok({k: v for k, v in GOOD.items() if k != "usage"}),
    "no_content": ok({k: v for k, v in GOOD.items() if k != "content"}),
    "content_text": ok({**GOOD, "content": "go left"}),
    "content_numbers": ok({**GOOD, "content": [1, None, "x"]}),
    "text_number": ok({**GOOD, "content": [{"type": "text", "text": 5}]}),
    "usage_words": ok({**GOOD, "usage": {"input_tokens": "many", "output_tokens": 1}}),
    "usage_negative": ok({**GOOD, "usage": {"input_tokens": -(10**6), "output_tokens": 1}}),
    "usage_list": ok({**GOOD, "usage": [1, 2]}),
    "stop_number": ok({**GOOD, "stop_reason": 5}),
    "empty": ok({**GOOD, "content": []}),
    "blank": ok({**GOOD, "content": [{"type": "text", "text": " \n"}]}),
    "thinking": ok({**GOOD, "content": [THOUGHT, *GOOD["content"]]}),
    "surrogate": ok({**GOOD, "content": [{"type": "text", "text": "a\ud800b"}]}),
    "big": big(200),
    "big_500": big(500),
    "bomb": raw(gzip.compress(b"x" * 10_000_000), content_encoding="gzip"),
    "refusal": ok({**GOOD, "content": [], "stop_reason": "refusal"}),
    "max_tokens": ok({**GOOD, "stop_reason": "max_tokens"}),
    "echo_key": lambda h: h.error(401, f"the key {KEY} is not valid"),
    "echo_key_in_answer": ok(
        {
            **GOOD,
            "content": [{"type": "text", "text": json.dumps({"why": KEY, "plan": "left", "confidence": 1})}],
        }
    ),
    "busy": status(429, retry_after="60"),
}


class Listener(ThreadingHTTPServer):
    """Says nothing of clients that went away."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


if __name__ == "__main__":
    httpd = Listener(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    print(httpd.server_address[1], flush=True)
    httpd.serve_forever()
