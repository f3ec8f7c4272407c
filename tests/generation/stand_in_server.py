"""Stand-ins for vLLM: a server that is strict about the request format of ``vllm serve``, and a module with its ``LLM``.

Format, defaults, order of checks and error bodies are those of vLLM 0.32 (``entrypoints/openai/completion``,
``entrypoints/serve``, ``sampling_params.py``). Stricter than it: a field that is not in the format, or that is not
supported here, is refused, where vLLM passes over what it does not know.
"""

import json
import random
import threading
import time
import types
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

VERSION = "0.32.0"


def letters(prompt, *, temperature, seed):
    """A model that needs no arithmetic: its tokens are a function of prompt and seed; about one in nine is the end."""
    numbers = random.Random(repr((seed if temperature else None, prompt)))
    while True:
        yield 1 if numbers.random() < 0.11 else numbers.randrange(2, 28)


def naive(model):
    """The slow loop: the whole row through the model for each token."""

    def stream(prompt, *, temperature, seed):
        row, noise = list(prompt), torch.Generator().manual_seed(seed)
        while True:
            with torch.no_grad():
                logits = model(torch.tensor([row])).logits[0, -1]
            weights = torch.softmax(logits / (temperature or 1), -1)
            row.append(int(logits.argmax() if temperature == 0 else torch.multinomial(weights, 1, generator=noise)))
            yield row[-1]

    return stream


def an_int(low=None, high=None):
    return lambda value: type(value) is int and (low is None or value >= low) and (high is None or value <= high)


def a_float(low, high):
    return lambda value: type(value) in (int, float) and low <= value <= high


def a_bool(value):
    return type(value) is bool


def a_list_of(check):
    return lambda value: isinstance(value, list) and all(map(check, value))


def a_text(value):
    return isinstance(value, str)


# name: (check, default of a completion request)
FIELDS = {
    "model": (a_text, None),
    "prompt": (lambda value: a_list_of(an_int(0))(value) and len(value) > 0, None),
    "max_tokens": (an_int(1), 16),
    "n": (an_int(1, 16384), 1),
    "temperature": (a_float(0, 2), None),
    "top_p": (lambda value: a_float(0, 1)(value) and value > 0, None),
    "top_k": (an_int(-1), None),
    "min_p": (a_float(0, 1), None),
    "repetition_penalty": (lambda value: a_float(0, 1e9)(value) and value > 0, None),
    "presence_penalty": (a_float(-2, 2), None),
    "frequency_penalty": (a_float(-2, 2), None),
    "seed": (an_int(-(2**63), 2**63 - 1), None),
    "stop": (a_list_of(lambda value: a_text(value) and value), []),
    "stop_token_ids": (a_list_of(an_int()), []),
    "ignore_eos": (a_bool, False),
    "skip_special_tokens": (a_bool, True),
    "return_token_ids": (a_bool, None),
    "stream": (lambda value: value is False, False),
}
# what vLLM takes from the model's generation_config.json where a request is silent
SHAPING = {
    "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0,
    "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
}  # fmt: skip


class Refused(Exception):
    """Becomes an error response."""

    def __init__(self, status, message, kind, param=None):
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


@dataclass
class StandIn:
    """What the server is and does.

    Args:
        tokenizer: Its own.
        stream: From (prompt, temperature, seed) to tokens without end, as :func:`letters`.
        served: Names of the model.
        max_model_len: Tokens that prompt and completion may have together.
        generation_config: Of the model: settings that hold where a request is silent, and ``eos_token_id``.
        api_key: Asked for under ``/v1``.
        seconds: From a completion's tokens to the time that it takes.
        faults: What befalls the next completions, one each: ``None``, ``"429"``, ``"503"``, ``"drop"`` (hangs up amid the
            response), ``"reset"`` (before it), ``"garbage"`` (no JSON), or a function that changes the response.
        hidden: Paths that give 404.

    Attributes:
        requests: Bodies of the completion requests, with the settings in effect as ``effective``.
        most: Most completions in progress at a time.
        url: Where it listens, while it is entered.
    """

    tokenizer: object
    stream: object = letters
    served: tuple = ("tiny",)
    max_model_len: int = 128
    generation_config: dict = field(default_factory=dict)
    api_key: str | None = None
    seconds: object = lambda tokens: 0.0
    faults: deque = field(default_factory=deque)
    hidden: frozenset = frozenset()
    requests: list = field(default_factory=list)
    most: int = 0
    url: str = ""

    def __enter__(self):
        self.closing, self.lock, self.running = threading.Event(), threading.Lock(), 0
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"stand_in": self}))
        self.server.handle_error = lambda *_: None  # clients that hang up
        self.server.daemon_threads = False
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def next_fault(self):
        with self.lock:
            return self.faults.popleft() if self.faults else None

    def models(self):
        cards = [
            {"id": name, "object": "model", "created": 0, "owned_by": "vllm", "root": "/models/tiny", "parent": None,
             "max_model_len": self.max_model_len, "permission": []}
            for name in self.served
        ]  # fmt: skip
        return {"object": "list", "data": cards}

    def tokenize(self, body):
        tokens = self.tokenizer(body["prompt"], add_special_tokens=body["add_special_tokens"])["input_ids"]
        return {"count": len(tokens), "max_model_len": self.max_model_len, "tokens": tokens, "token_strs": None}

    def complete(self, body):
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            return self._complete(body)
        finally:
            with self.lock:
                self.running -= 1

    def _complete(self, body):
        checked(body)
        if body.get("model") not in (None, *self.served):
            names = ", ".join(self.served)
            message = f"The model `{body['model']}` does not exist. Valid aliases: {names}."
            raise Refused(404, message, "NotFoundError", "model")
        given = {name: default for name, (_, default) in FIELDS.items()} | body
        for name, neutral in SHAPING.items():
            if given[name] is None:
                given[name] = self.generation_config.get(name, neutral)
        prompt = given["prompt"]
        if max(prompt) >= len(self.tokenizer):
            message = f"Token id {max(prompt)} is out of vocabulary (parameter=prompt)"
            raise Refused(400, message, "BadRequestError", "prompt")
        if given["max_tokens"] > self.max_model_len:
            raise Refused(
                400, f"max_tokens={given['max_tokens']} cannot be greater than max_model_len={self.max_model_len}. "
                "Please request fewer output tokens.", "BadRequestError", "max_tokens",
            )  # fmt: skip
        if len(prompt) > self.max_model_len:
            raise Refused(
                400, f"This model's maximum context length is {self.max_model_len} tokens. However, your prompt "
                f"contains {len(prompt)} input tokens, which exceeds this limit even without any output tokens. "
                "Please reduce the length of the input prompt.", "BadRequestError", "input_tokens",
            )  # fmt: skip
        given["max_tokens"] = min(given["max_tokens"], self.max_model_len - len(prompt))  # without a word
        with self.lock:
            self.requests.append(body | {"effective": given})
        rows = [self._row(prompt, given, given["seed"] + index) for index in range(given["n"])]
        self.closing.wait(max(self.seconds(row["token_ids"]) for row in rows))
        choices = [
            {"index": index, "logprobs": None, "prompt_logprobs": None, "routed_experts": None,
             "prompt_token_ids": prompt if given["return_token_ids"] else None, **row,
             "token_ids": row["token_ids"] if given["return_token_ids"] else None}
            for index, row in enumerate(rows)
        ]  # fmt: skip
        count = sum(len(row["token_ids"]) for row in rows)
        usage = {"prompt_tokens": len(prompt), "total_tokens": len(prompt) + count, "completion_tokens": count,
                 "prompt_tokens_details": None, "completion_tokens_details": None}  # fmt: skip
        return {"id": "cmpl-0", "object": "text_completion", "created": 0, "model": self.served[0], "choices": choices,
                "service_tier": None, "system_fingerprint": None, "usage": usage, "kv_transfer_params": None,
                "ec_transfer_params": None, "metrics": None}  # fmt: skip

    def _row(self, prompt, given, seed):
        own = [] if given["ignore_eos"] else [self.generation_config.get("eos_token_id")]
        tokens = []
        for token in self.stream(prompt, temperature=given["temperature"], seed=seed):
            tokens.append(token)
            if token in own or token in given["stop_token_ids"]:
                text, reason, why = self._text(tokens[:-1]), "stop", None if token in own else token
                break
            text, reason, why = self._text(tokens), "length", None
            found = {stop: text.index(stop) for stop in given["stop"] if stop in text}
            if found:
                why = min(found, key=lambda stop: found[stop] + len(stop))  # the one that was complete first
                text, reason = text[: found[why]], "stop"
                break
            if len(tokens) == given["max_tokens"]:
                break
        return {"text": text, "token_ids": tokens, "finish_reason": reason, "stop_reason": why}

    def _text(self, tokens):
        return self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def checked(body):
    """Refuse what pydantic refuses, and what is not in the format."""
    wrong = [name for name, value in body.items() if name not in FIELDS or not FIELDS[name][0](value)]
    if "prompt" not in body:
        wrong.append("prompt")
    if wrong:
        message = f"{len(wrong)} validation errors:\n" + "".join(f"  {{'loc': 'body.{name}'}}\n" for name in wrong)
        raise Refused(400, message, "Bad Request", f"body.{wrong[0]}")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer({"/v1/models": self.stand_in.models, "/version": lambda: {"version": VERSION}})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Content-Type"] != "application/json":
            message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
            return self.send(400, Refused(400, message, "Bad Request").body)
        if self.path == "/v1/completions" and (fault := self.stand_in.next_fault()) is not None:
            return self.fail(fault, body)
        return self.answer(
            {"/v1/completions": lambda: self.stand_in.complete(body), "/tokenize": lambda: self.stand_in.tokenize(body)}
        )

    def answer(self, paths, change=lambda found: found):
        key = self.stand_in.api_key
        if key is not None and self.path.startswith("/v1") and self.headers["Authorization"] != f"Bearer {key}":
            return self.send(401, {"error": "Unauthorized"})
        if self.path not in paths or self.path in self.stand_in.hidden:
            return self.send(404, {"error": {"message": "Not Found", "type": "Not Found", "param": None, "code": 404}})
        try:
            return self.send(200, change(paths[self.path]()))
        except Refused as refused:
            return self.send(refused.status, refused.body)

    def fail(self, fault, body):
        if callable(fault):
            return self.answer({"/v1/completions": lambda: self.stand_in.complete(body)}, fault)
        if fault == "reset":
            return self.hang_up()
        if fault == "garbage":
            return self.write(200, b"<html>502\nBad Gateway</html>")
        if fault == "drop":
            self.write(200, b'{"id": "cmpl-0", "obj', length=1000)
            return self.hang_up()
        status = int(fault)
        message = "The engine is currently busy and cannot accept new requests. Please try again later."
        kind = {503: "Service Unavailable", 429: "Too Many Requests", 500: "InternalServerError"}[status]
        return self.send(status, {"error": {"message": message, "type": kind, "param": None, "code": status}})

    def send(self, status, found):
        self.write(status, json.dumps(found).encode())

    def write(self, status, data, length=None):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)

    def hang_up(self):
        self.close_connection = True


@dataclass
class SamplingParams:
    """The arguments of ``vllm.SamplingParams`` that have a meaning here."""

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: list | None = None
    stop_token_ids: list | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    skip_special_tokens: bool = True


def offline_module(stand_in, *, steps=time.monotonic):
    """Return a module that has what is used of ``vllm``; ``calls`` of its ``LLM`` are the sizes of its batches.

    Rows run on a clock of their own: a row takes a hundredth of a second a token, ``max_num_seqs`` at a time.
    """

    class LLM:
        calls: list = []  # noqa: RUF012

        def __init__(self, model, *, max_num_seqs=256, disable_log_stats=True, dtype="auto"):
            self.model, self.width, self.silent, self.dtype = model, max_num_seqs, disable_log_stats, dtype
            self.model_config = types.SimpleNamespace(max_model_len=stand_in.max_model_len)
            self.now = steps()

        def get_tokenizer(self):
            return stand_in.tokenizer

        def generate(self, prompts, sampling_params=None, *, use_tqdm=True):
            assert len(prompts) == len(sampling_params)
            assert not use_tqdm
            self.calls.append(len(prompts))
            free = [self.now] * self.width
            found = []
            for prompt, params in zip(prompts, sampling_params, strict=True):
                assert set(prompt) == {"prompt_token_ids"}
                assert isinstance(params, SamplingParams)
                checked(vars(params) | {"prompt": prompt["prompt_token_ids"]})
                row = stand_in._row(prompt["prompt_token_ids"], vars(params), params.seed)
                start = min(free)
                end = start + 0.01 * len(row["token_ids"])
                free[free.index(start)] = end
                metrics = types.SimpleNamespace(scheduled_ts=start, last_token_ts=end)
                found.append(
                    types.SimpleNamespace(
                        prompt_token_ids=prompt["prompt_token_ids"],
                        outputs=[types.SimpleNamespace(index=0, **row)],
                        metrics=None if self.silent else metrics,
                        finished=True,
                    )
                )
            self.now = max(free) + 5.0  # what happens between two calls is nobody's
            return found

    module = types.ModuleType("vllm")
    module.LLM, module.SamplingParams, module.__version__ = LLM, SamplingParams, VERSION
    return module
