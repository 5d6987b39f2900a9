"""A tiny chat model that knows the words of a generated company, and a server that is none."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from sordino.access.questions import Question

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
QUESTION = Question(
    id="q",
    company="c",
    questionnaire="age_self",
    kind="benign",
    attribute="age",
    asker="E1",
    target="E1",
    system="Rules and records.",
    prompt="What is my age?",
    expected=["4711"],
    answer="{{4711}}",
    rationale="own record",
    template="self/test/0",
)
SPECIAL = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


def make_tokenizer(*, template: str | None = TEMPLATE, bos: bool = False) -> Any:
    """Returns a tokenizer of bytes with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: number for number, word in enumerate([*SPECIAL, "<s>", *letters])}
    backend = Tokenizer(models.BPE(vocab=words, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if bos:
        backend.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", words["<s>"])]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|end|>",  # noqa: S106
        bos_token="<s>" if bos else None,
        additional_special_tokens=SPECIAL[1:],
        model_max_length=8192,
    )
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = template
    return tokenizer


def write_chat_model(folder: Path) -> Path:
    """Writes a random Llama with that tokenizer, long enough for a whole question."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=8192,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        initializer_range=0.5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(2)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@contextmanager
def stub_server(
    reply: Callable[[dict[str, Any], int], tuple[int, Any]],
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yields the address of a server and the requests it got.

    Args:
        reply: Returns status and body for a request's JSON and its number; a str body is sent as
            it is.
    """
    seen: list[dict[str, Any]] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                seen.append(
                    {
                        "path": self.path,
                        "headers": dict(self.headers),
                        "json": json.loads(content),
                    }
                )
                number = len(seen)
            status, body = reply(seen[number - 1]["json"], number)
            sent = body if isinstance(body, str) else json.dumps(body)
            self.send_response(status)
            if status in {301, 302, 307}:
                self.send_header("Location", sent)
            self.send_header("Content-Length", str(len(sent.encode())))
            self.end_headers()
            self.wfile.write(sent.encode())

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def completion(text: Any, **message: Any) -> dict[str, Any]:
    """Returns a chat completion that says a text."""
    return {"choices": [{"message": {"role": "assistant", "content": text} | message}]}
