"""A tiny model that knows the words of access questions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sordino.access.questions import Question

_CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|answer|>\n{% endif %}"
)
LORA_TARGETS = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]


def make_tokenizer(questions: Sequence[Question], *, with_start: bool = False) -> Any:
    """Returns a tokenizer of the questions' words with a chat template.

    Args:
        questions: Their texts are covered.
        with_start: Whether it puts a start token before every text, and the template one too.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Split(Regex(r" ?[A-Za-z']+|[0-9]+|\{\{|\}\}|\s|."), "isolated")
    specials = ["</s>", "<s>", "<unk>"]
    texts = [
        text
        for q in questions
        for part in (q.system, q.prompt, q.rationale, q.answer, *q.expected)
        for text in (part, f" {part}\n")
    ]
    words = {piece for text in texts for piece, _ in split.pre_tokenize_str(text)}
    words |= set("<|>abcdefghijklmnopqrstuvwxyz ") | {"answer", "system", "user", " system"}
    vocabulary = {word: i for i, word in enumerate([*specials, *sorted(words)])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106
    backend.pre_tokenizer = split
    backend.decoder = decoders.Fuse()
    if with_start:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="</s>",  # noqa: S106
        bos_token="<s>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
        chat_template=("<s>" if with_start else "") + _CHAT,
        clean_up_tokenization_spaces=False,
    )


def write_access_model(folder: Path, questions: Sequence[Question]) -> Path:
    """Writes a random Llama with that tokenizer in Hugging Face format."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(questions)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
