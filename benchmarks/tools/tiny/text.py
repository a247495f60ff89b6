"""Tokenizers that know the letters of some prompts, and tiny text encoders of many kinds for them."""

# pyright: reportArgumentType=false, reportPrivateImportUsage=false

import ast
import inspect
import json
import sys
from collections.abc import Sequence
from typing import Any

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from support.text import text_config, tokenizer
from support.text_transformers import letter_tokenizer, t5

__all__ = ["letter_tokenizer", "t5"]

Encoder = Any
Words = Any

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat as Qwen's models see it, in text alone."""

CHAT_TOKENS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
"""Of a decoder-only language model."""


SMALL_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
"""Of the vision towers of Gemma's models."""


def clip(
    prompts: Sequence[str], *, projection: bool = False, width: int = 16, length: int = 12
) -> tuple[Encoder, Words]:
    """CLIP's text encoder, with a projection or without, of prompts of so many tokens."""
    words = tokenizer(prompts, length)
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return kind(text_config(words, width)), words


def umt5(prompts: Sequence[str], width: int = 16) -> tuple[Encoder, Words]:
    """An encoder of UMT5's kind."""
    words = letter_tokenizer(prompts)
    sizes = {"d_model": width, "d_kv": width // 2, "d_ff": 2 * width, "num_layers": 2, "num_heads": 2}
    return transformers.UMT5EncoderModel(transformers.UMT5Config(vocab_size=len(words), **sizes)), words


def decoder(words: Words, kind: str, **more: Any) -> Encoder:  # noqa: ANN401
    """A decoder-only language model of transformers: `kind` is the name of its class."""
    model = getattr(transformers, kind)
    sizes = SIZES | {"vocab_size": len(words), "pad_token_id": words.pad_token_id, "bos_token_id": words.bos_token_id}
    return model(model.config_class(**sizes | {"eos_token_id": words.eos_token_id, **more}))


def _pieces(prompts: Sequence[str], special: Sequence[str]) -> dict[str, int]:
    """Special tokens, bytes, and the letters of the prompts."""
    letters = sorted(set("".join(prompts)) - {" "})
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *letters]
    return {piece: place for place, piece in enumerate(pieces)}


def gemma(prompts: Sequence[str], kind: str = "Gemma2Model", **more: Any) -> tuple[Encoder, Words]:  # noqa: ANN401
    """A language model of Gemma's kind, whose tokens are letters."""
    vocabulary = _pieces(prompts, ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"))
    words = transformers.GemmaTokenizer(vocab=vocabulary, merges=[], model_max_length=512, add_bos_token=True)
    return decoder(words, kind, **more), words


def llama(prompts: Sequence[str], kind: str = "LlamaModel", **more: Any) -> tuple[Encoder, Words]:  # noqa: ANN401
    """A language model of Llama's kind, whose tokens are letters."""
    vocabulary = _pieces(prompts, ("<unk>", "<s>", "</s>"))
    words = transformers.LlamaTokenizer(
        vocab=vocabulary, merges=[], pad_token="<unk>", model_max_length=512, add_bos_token=True
    )
    return decoder(words, kind, **more), words


def templates(kind: type) -> list[str]:
    """The long texts in the source of a pipeline's module: the chats around which it writes prompts.

    A tokenizer that has learned them makes whole words of them, as that of the real model does: the pipeline drops
    their tokens by number.
    """
    nodes = list(ast.walk(ast.parse(inspect.getsource(sys.modules[kind.__module__]))))
    prose = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    texts = (node.value for node in nodes if isinstance(node, ast.Constant) and id(node) not in prose)
    return [text for text in texts if isinstance(text, str) and ("<|" in text or len(text) > 200)]


def byte_pairs(texts: Sequence[str], size: int = 3000) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary of at most so many byte pairs learned from some texts, and its merges."""
    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    pairs.train_from_iterator(texts, trainer)
    learned = json.loads(pairs.to_str())["model"]
    return learned["vocab"], [tuple(pair) for pair in learned["merges"]]


def chat_tokenizer(prompts: Sequence[str], chats: Sequence[str] = ()) -> Words:
    """Qwen's tokenizer with byte pairs learned from prompts and chats, and a chat template."""
    plain = (chat.replace("<|", " ").replace("|>", " ") for chat in chats)
    vocabulary, merges = byte_pairs([*prompts, *plain])
    words = transformers.Qwen2Tokenizer(
        vocab=vocabulary, merges=merges, model_max_length=512, extra_special_tokens=CHAT_TOKENS
    )
    words.chat_template = CHAT
    return words


def qwen(prompts: Sequence[str], kind: str = "Qwen3Model", **more: Any) -> tuple[Encoder, Words]:  # noqa: ANN401
    """A language model of Qwen's kind."""
    words = chat_tokenizer(prompts)
    return decoder(words, kind, **more), words


MROPE: dict[str, Any] = {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"}
"""Rotary embeddings of time, height and width, for heads of 8."""


def qwen_vl(
    prompts: Sequence[str], chats: Sequence[str] = (), kind: str = "Qwen2_5_VL", layers: int = 2
) -> tuple[Encoder, Words]:
    """Qwen2.5-VL (or "Qwen2VL"), which reads text here; its vision tower is tiny, too."""
    words = chat_tokenizer(prompts, chats)
    sizes = {key: value for key, value in SIZES.items() if key != "head_dim"}
    config = getattr(transformers, f"{kind}Config")(
        text_config={**sizes, "num_hidden_layers": layers, "vocab_size": len(words), "rope_scaling": MROPE},
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "embed_dim": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            **({"out_hidden_size": 16} if kind == "Qwen2_5_VL" else {}),
        },
        vision_start_token_id=words.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=words.convert_tokens_to_ids("<|vision_end|>"),
        image_token_id=words.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=words.convert_tokens_to_ids("<|video_pad|>"),
    )
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config), words


def t5_of(tokens: int, width: int = 16) -> transformers.T5EncoderModel:
    """An encoder of T5's kind for so many tokens."""
    sizes = {"d_model": width, "d_kv": width // 2, "d_ff": 2 * width, "num_layers": 2, "num_heads": 2}
    return transformers.T5EncoderModel(transformers.T5Config(vocab_size=tokens, **sizes))


def qwen3_vl(prompts: Sequence[str], kind: str, chats: Sequence[str] = (), layers: int = 2) -> tuple[Encoder, Words]:
    """Qwen3-VL, which reads text here: `kind` is the name of its class."""
    words = chat_tokenizer(prompts, chats)
    config = transformers.Qwen3VLConfig(
        text_config={**SIZES, "num_hidden_layers": layers, "vocab_size": len(words), "rope_scaling": MROPE},
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16},
        vision_start_token_id=words.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=words.convert_tokens_to_ids("<|vision_end|>"),
        image_token_id=words.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=words.convert_tokens_to_ids("<|video_pad|>"),
    )
    return getattr(transformers, kind)(config), words


def bert_tokenizer(prompts: Sequence[str]) -> Words:
    """BERT's tokenizer, whose words are those of the prompts and whose further pieces are their letters."""
    letters = sorted({letter for prompt in prompts for letter in prompt.lower() if not letter.isspace()})
    words = sorted({word for prompt in prompts for word in prompt.lower().split()})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters, *(f"##{letter}" for letter in letters)]
    return transformers.BertTokenizer(vocab={piece: place for place, piece in enumerate(dict.fromkeys(pieces))})
