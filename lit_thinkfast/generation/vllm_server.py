"""A client of ``vllm serve``: token ids in, token ids out, with the standard library alone.

It uses ``POST /v1/completions`` with prompts of token ids, one request a sample; ``GET /v1/models`` and ``/version``
for what is served, and ``POST /tokenize`` to see whether the server splits texts as we do. The format is that of vLLM
0.26 to 0.32 (``CompletionRequest`` and ``CompletionResponse`` in ``vllm/entrypoints/openai/completion/protocol.py``,
errors in ``vllm/entrypoints/serve``). A server passes over fields that it does not know, so that one misspelt would go
unseen: the stand-in of the tests knows these fields and no others.

Requests are spread over threads, each with one request in flight on a connection of its own: what waits for a server
needs no more, and a connection that is used once is never found closed.
"""

from __future__ import annotations

import http.client
import json
import queue
import random
import socket
import threading
import urllib.parse
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, NamedTuple

from lit_thinkfast.generation.in_flight import Answer, EngineFacts, Job, Share, SharedClock, Tick

_RETRY = frozenset({429, 502, 503, 504})
_CONNECT_SECONDS = 10.0
_LONGEST_WAIT = 30.0
_TICK = 0.25
_MESSAGE_LENGTH = 300


class Reply(NamedTuple):
    """An HTTP response: status, body, and how many seconds to wait before the next try, where it says so."""

    status: int
    body: bytes
    retry_after: float | None


class Server:
    """A running ``vllm serve``. Nothing is sent before it is asked for something.

    Args:
        url: Where it listens, like ``http://localhost:8000``; a path before ``/v1`` is kept.
        model: Name of the model as served; may be left out where there is one.
        api_key: What the server was started with as ``--api-key``, if anything.
        timeout: Seconds to wait for one completion, its time in the server's queue included.
        tries: How often a request is sent that finds the server busy (429, 503), gone, or breaking off.
        backoff: Seconds before the second try; doubled with each further one, up to 30, and spread at random.

    Raises:
        ValueError: Not such a URL, or a number out of its range.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 600.0,
        tries: int = 8,
        backoff: float = 0.5,
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise ValueError(f"{url!r} is not the address of a server; write it like http://localhost:8000")
        if tries < 1 or not timeout > 0 or not backoff >= 0:
            raise ValueError(
                f"tries {tries}, timeout {timeout} and backoff {backoff} must be at least 1, above 0 and 0"
            )
        self.url = url
        self.tries = tries
        self.timeout = timeout
        self.backoff = backoff
        self._parts = parts
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")
        self._model = model
        self._headers = {"Content-Type": "application/json", "Connection": "close"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._facts: EngineFacts | None = None

    def facts(self) -> EngineFacts:
        """Return what is served there; asked for once.

        Raises:
            ConnectionError: No server there.
            ValueError: Not a vLLM server, or the model is not among those that it serves.
        """
        if self._facts is None:
            card = self._card()
            version = self._ask("GET", "/version", missing={"version": "unknown"})  # a proxy may hide it
            limit = card.get("max_model_len")
            self._facts = EngineFacts(
                model=str(card["id"]),
                version=str(version.get("version", "unknown")),
                positions=limit if isinstance(limit, int) else None,
            )
        return self._facts

    def encode(self, text: str) -> list[int] | None:
        """Return the tokens of a text, without special ones; ``None`` where the server hides its tokenizer."""
        body = {"model": self.facts().model, "prompt": text, "add_special_tokens": False}
        tokens = self._ask("POST", "/tokenize", body, missing={"tokens": None})["tokens"]
        return None if tokens is None else list(tokens)

    def describe(self) -> dict[str, Any]:
        """Return what may be said of a machine that is not this one."""
        return {"device": "server", "device_name": f"a vLLM {self.facts().version} server"}

    def run(self, jobs: Iterator[Job], *, width: int, seconds: float | None = None) -> Generator[Answer | Tick]:
        """Send jobs, at most ``width`` at a time; see :class:`~lit_thinkfast.generation.in_flight.Engine`.

        Raises:
            ConnectionError: The server stayed busy or away for all tries.
            TimeoutError: A completion took longer than ``timeout``.
            ValueError: The server refused a request or answered something else.
        """
        self.facts()
        calls = _Calls(self, jobs, seconds=seconds)
        threads = [threading.Thread(target=calls.work, name=f"vllm-{i}", daemon=True) for i in range(width)]
        calls.workers = len(threads)
        try:
            for thread in threads:
                thread.start()
            yield from calls.events()
        finally:
            calls.halt()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()

    def exchange(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        opened: Callable[[socket.socket], None] = lambda _: None,
        timing: AbstractContextManager[None] | None = None,
    ) -> Reply:
        """Send one request over a connection of its own and read the whole response.

        Args:
            method: Of HTTP.
            path: Like ``/v1/completions``.
            body: Sent as JSON.
            opened: Told the socket, so that it can be shut from elsewhere.
            timing: Entered before the request is sent and left when the response is there or has failed.

        Raises:
            TimeoutError: No response within the timeout.
            OSError: Other failures of the network.
            http.client.HTTPException: The response broke off or is not HTTP.
        """
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        patience = min(_CONNECT_SECONDS, self.timeout)
        connection = kind(str(self._parts.hostname), self._parts.port, timeout=patience)
        data = None if body is None else json.dumps(body).encode()
        try:
            try:
                connection.connect()
            except TimeoutError:
                raise ConnectionError(f"no connection within {patience:g} s") from None
            connection.sock.settimeout(self.timeout)
            opened(connection.sock)
            with timing or nullcontext():
                connection.request(method, self._prefix + path, data, self._headers)
                with connection.getresponse() as response:
                    after = response.getheader("Retry-After", "")
                    return Reply(response.status, response.read(), float(after) if after.isdigit() else None)
        finally:
            connection.close()

    def _card(self) -> dict[str, Any]:
        """Return the entry of the model in the list of what is served."""
        found = self._ask("GET", "/v1/models").get("data")
        cards = found if isinstance(found, list) else []
        cards = [card for card in cards if isinstance(card, dict) and isinstance(card.get("id"), str)]
        if self._model is not None:
            chosen = [card for card in cards if card["id"] == self._model]
        else:  # adapters have a parent; one model may have several names
            chosen = [card for card in cards if card.get("parent") is None]
            chosen = chosen if len({card.get("root") for card in chosen}) == 1 else []
        if not chosen:
            names = ", ".join(card["id"] for card in cards) or "nothing"
            which = "more than one model" if self._model is None else f"no {self._model!r}"
            raise ValueError(f"{self.url} serves {which}; it has {names}; name one of them")
        card: dict[str, Any] = chosen[0]
        return card

    def _ask(self, method: str, path: str, body: Any = None, *, missing: dict[str, Any] | None = None) -> Any:
        """Exchange JSON once; ``missing`` is the answer where there is no such path."""
        try:
            reply = self.exchange(method, path, body)
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionError(
                f"no vLLM server answers at {self.url} ({_reason(error)}); start one with `vllm serve FOLDER`, "
                "or give the url of one"
            ) from None
        if reply.status == 404 and missing is not None:
            return missing
        if reply.status != 200:
            raise refusal(reply)
        return _parsed(reply.body)


class _Calls:
    """Jobs on their way to a server: threads run :meth:`work`, their owner reads :meth:`events`."""

    def __init__(self, server: Server, jobs: Iterator[Job], *, seconds: float | None) -> None:
        self.workers = 0
        self._server = server
        self._jobs = jobs
        self._seconds = seconds
        self._clock = SharedClock()
        self._events: queue.SimpleQueue[Answer | Exception | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._halt = threading.Event()
        self._open: dict[int, socket.socket] = {}  # by thread

    def events(self) -> Iterator[Answer | Tick]:
        """Yield answers as they come; the first failure of a worker is raised here."""
        while True:
            left = _TICK
            if self._seconds is not None and not self._halt.is_set():
                left = min(_TICK, self._seconds - self._clock.busy)
                if left <= 0:
                    self.halt()
            try:
                event = self._events.get(timeout=max(left, 0.001))
            except queue.Empty:
                yield self._tick()
                continue
            if event is None:
                break
            if isinstance(event, Exception):
                raise event
            if self._seconds is None or event.share.finished <= self._seconds:
                yield event
        yield self._tick()

    def _tick(self) -> Tick:
        return Tick(self._clock.busy, self._clock.in_flight, self._clock.most)

    def halt(self) -> None:
        """Begin nothing more and hang up, on which the server drops what it was asked."""
        with self._lock:
            self._halt.set()
            for open_ in self._open.values():
                with suppress(OSError):
                    open_.shutdown(socket.SHUT_RDWR)

    def work(self) -> None:
        """Take jobs until there are none."""
        try:
            while (job := self._next()) is not None and (answer := self._answer(job)) is not None:
                self._events.put(answer)
        except Exception as error:
            if not self._halt.is_set():  # else it was hung up on purpose, or another has failed before
                self.halt()
                self._events.put(error)
        finally:
            with self._lock:
                self.workers -= 1
                last = self.workers == 0
            if last:
                self._events.put(None)

    def _next(self) -> Job | None:
        with self._lock:
            if self._halt.is_set() or (self._seconds is not None and self._clock.busy >= self._seconds):
                return None
            return next(self._jobs, None)

    def _answer(self, job: Job) -> Answer | None:
        """Send a job until it is answered; ``None``: it was given up."""
        server = self._server
        body = {"model": server.facts().model, "prompt": job.prompt, "stream": False, "return_token_ids": True}
        shares: list[Share] = []
        wait, trouble = 0.0, ""
        for attempt in range(server.tries):
            if self._halt.wait(wait):
                return None
            wait = min(_LONGEST_WAIT, server.backoff * 2**attempt) * random.uniform(0.5, 1.5)
            try:
                reply = server.exchange(
                    "POST",
                    "/v1/completions",
                    body | job.parameters,
                    opened=self._remember,
                    timing=self._clock.timing(shares),
                )
            except TimeoutError:
                raise TimeoutError(
                    f"problem {job.problem_id!r}, sample {job.sample}: no completion within timeout {server.timeout:g} "
                    "s; give a longer one, or a smaller batch size"
                ) from None
            except (ConnectionError, http.client.HTTPException) as error:
                trouble = _reason(error)
                continue
            finally:
                with self._lock:
                    self._open.pop(threading.get_ident(), None)
            if reply.status == 200:
                tokens, reason = read_answer(reply.body, job)
                return Answer(job, tokens, reason, shares[-1]._replace(seconds=sum(s.seconds for s in shares)))
            if reply.status not in _RETRY:
                raise refusal(reply)
            trouble = f"{reply.status}: {_message(reply)}"
            wait = wait if reply.retry_after is None else min(_LONGEST_WAIT, reply.retry_after)
        raise ConnectionError(
            f"the server did not answer in {server.tries} tries ({trouble}); see whether it runs and what its log "
            "says, then go on with the same command, with a smaller batch size if it was too busy"
        )

    def _remember(self, open_: socket.socket) -> None:
        with self._lock:
            if self._halt.is_set():
                raise ConnectionAbortedError("given up")
            self._open[threading.get_ident()] = open_


def read_answer(body: bytes, job: Job) -> tuple[list[int], str]:
    """Return the tokens of a completion and its finish reason.

    Raises:
        ValueError: Not the response to this job: no JSON, fields missing, another prompt, or counts that differ.
    """
    found = _parsed(body)
    choices = found.get("choices")
    choice = choices[0] if isinstance(choices, list) and len(choices) == 1 else None
    if not isinstance(choice, dict) or not isinstance(reason := choice.get("finish_reason"), str):
        raise ValueError("the server's answer has not one finished choice; is it a vLLM server?")
    tokens = choice.get("token_ids")
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise ValueError("the server's answer has no token_ids; vLLM 0.26 or later gives them")
    if choice.get("prompt_token_ids") != job.prompt:
        raise ValueError(
            f"problem {job.problem_id!r}: the server's model saw another prompt than the one that was sent; "
            "start the server without options or proxies that change prompts"
        )
    usage = found.get("usage")
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    if count != len(tokens):
        raise ValueError(f"the server counts {count} completion tokens but sends {len(tokens)}; is it a vLLM server?")
    return tokens, reason


def refusal(reply: Reply) -> ValueError:
    """Return the error that says why a server refused a request, and what to do."""
    remedy = {
        400: "change the settings that it names",
        401: "give the api_key that it was started with",
        404: "give its address without a path, and the name of a model that it serves",
    }.get(reply.status, "see its log")
    return ValueError(f"the server refused a request ({reply.status}: {_message(reply)}); {remedy}")


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:  # UnicodeDecodeError among them
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"the server's answer is not a JSON object ({_short(body)}); is it a vLLM server?")
    return found


def _message(reply: Reply) -> str:
    """Return what an error's body says: ``{"error": {"message": ...}}``, or ``{"error": ...}`` for a missing key."""
    with suppress(ValueError):
        error = _parsed(reply.body).get("error")
        if isinstance(error, dict) and isinstance(error.get("message"), str):
            return _short(error["message"].encode())
        if isinstance(error, str):
            return _short(error.encode())
    return _short(reply.body) or http.client.responses.get(reply.status, "no reason")


def _short(text: bytes) -> str:
    line = " ".join(text.decode(errors="replace").split())
    return line if len(line) <= _MESSAGE_LENGTH else line[:_MESSAGE_LENGTH] + " ..."


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
