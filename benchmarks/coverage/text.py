"""Tiny text and image encoders, tokenizers and processors, made in memory: nothing is downloaded."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import tokenizers
import torch
import transformers

from benchmarks.coverage.shrink import LONGEST, WIDTH, tiny

WORDS = ("<unk>", "<pad>", "<s>", "</s>", "a", "red", "fox", "in", "the", "snow", "<image>")
CHAT = (
    "{% for message in messages %}{% if message.content is string %}{{ message.content }} {% else %}"
    "{% for part in message.content %}{{ part.text if part.text is defined else '<image>' }} {% endfor %}{% endif %}"
    "{% endfor %}"
)

SPECIAL = frozenset({"pad_token_id", "eos_token_id", "bos_token_id"})
"""Fields that number a special token, beyond the tiny vocabulary as they stand."""

ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}

CONFIGS: dict[str, dict[str, Any]] = {
    "CLIPTextConfig": {"vocab_size": 1000, "projection_dim": WIDTH, "eos_token_id": 3, "bos_token_id": 2},
    "CLIPVisionConfig": {"image_size": 32, "patch_size": 16, "projection_dim": WIDTH},
    "SiglipVisionConfig": {"image_size": 32, "patch_size": 16},
    "Qwen2_5_VLTextConfig": {"rope_parameters": ROPE},
    "Qwen2VLTextConfig": {"rope_parameters": ROPE},
    "Qwen3VLTextConfig": {"rope_parameters": ROPE},
    "T5Config": {"feed_forward_proj": "gated-gelu"},
}
"""What the names of a configuration's fields don't tell."""


def make_tokenizer() -> Any:
    """A tokenizer of whole words with the special tokens that pipelines ask for."""
    model = tokenizers.models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>")
    words = tokenizers.Tokenizer(model)
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(word, WORDS.index(word)) for word in ("<s>", "</s>")]
    )  # an empty prompt is a token or two
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        model_max_length=LONGEST, chat_template=CHAT, padding_side="right",
    )  # fmt: skip


class Processor:
    """What pipelines ask of a multimodal processor, as far as it concerns text."""

    def __init__(self, image_processor: Any = None) -> None:
        self.tokenizer, self.image_processor = make_tokenizer(), image_processor
        self.image_token = "<image>"

    def __call__(self, text: Any = None, **options: Any) -> Any:
        known = inspect.signature(transformers.PreTrainedTokenizerBase.__call__).parameters
        options.pop("images", None)
        return self.tokenizer(text, **{name: value for name, value in options.items() if name in known})

    def apply_chat_template(self, *messages: Any, **options: Any) -> Any:
        """Of one conversation; a processor's tokens are those of a batch, unlike a tokenizer's."""
        found = self.tokenizer.apply_chat_template(*messages, **options)
        return [found] if options.get("tokenize") and options.get("return_dict") is False else found

    def decode(self, *tokens: Any, **options: Any) -> Any:
        return self.tokenizer.decode(*tokens, **options)

    def batch_decode(self, *tokens: Any, **options: Any) -> Any:
        return self.tokenizer.batch_decode(*tokens, **options)


def make_config(config: type, overrides: Mapping[str, Any] | None = None) -> Any:
    """A configuration with the sizes that the names of its fields say, of all that it is made of."""
    given: dict[str, Any] = {}
    parts = _parts(config)
    fields = inspect.signature(config.__init__).parameters
    for name, parameter in fields.items():
        if name in parts or name in ("self", "kwargs"):
            continue
        value = tiny(name, parameter.default)
        if value is not parameter.default:
            given[name] = value
    given |= dict.fromkeys(SPECIAL.intersection(fields), 1) | CONFIGS.get(config.__name__, {})
    given |= overrides or {}
    for name, part in parts.items():
        if isinstance(own := given.get(name, {}), dict):
            given[name] = make_config(part, own)
    return config(**given)


def _parts(config: type) -> dict[str, type]:
    """The configurations that one consists of, by the name of their field."""
    names = getattr(config, "sub_configs", None) or {}
    stock = config() if names else None
    parts = {name: type(getattr(stock, name, None)) for name in names}
    return {name: part for name, part in parts.items() if part is not type(None)}


def make_encoder(model: Any, overrides: Mapping[str, Any] | None = None) -> Any:
    """A tiny model of transformers."""
    config = model.config_class
    return model(make_config(config, overrides)).eval().to(torch.float32)
