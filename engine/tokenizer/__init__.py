"""Text to token ids and back, from a GGUF file's metadata or a Hugging Face folder."""

from engine.tokenizer.base import Tokenizer
from engine.tokenizer.folder import tokenizer_from_folder
from engine.tokenizer.metadata import tokenizer_from_metadata
from engine.tokenizer.stream import StreamDecoder

__all__ = ["StreamDecoder", "Tokenizer", "tokenizer_from_folder", "tokenizer_from_metadata"]
