"""How byte-level vocabularies cut text into words, by GGUF's name: tokenizer.ggml.pre.

Each scheme is a list of regular expressions; every one cuts the pieces that the one before it left,
at its matches and between them.  They follow llama.cpp's llama-vocab.cpp, whose names these are.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import InputError

# Spelled out in both cases: a case-insensitive group would also take the long s, U+017F.
_CONTRACTIONS = r"'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"

_GPT2 = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_SYMBOLS}|{_SPACES}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_DEEPSEEK3 = (
    r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)
_PUNCTUATION = r"[\p{P}$+<=>^~|]+"

# A word in mixed case: letters that are not lower-case ASCII, then letters that are not upper-case.
_UPPER, _LOWER = r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?(?:{_UPPER}*{_LOWER}+|{_UPPER}+{_LOWER}*)"
_CASED_TAIL = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


@dataclass(frozen=True)
class PreTokenizer:
    """`ignore_merges`: a whole word that is a token stays one.  `add_bos`: when no key says."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False


_GPT2_STYLE = PreTokenizer((_GPT2,))
_DIGITS_STYLE = PreTokenizer((r"\p{N}", _GPT2))
_LLAMA3_STYLE = PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True)
_LLAMA3_PLAIN = PreTokenizer((_LLAMA3,))
_QWEN2_STYLE = PreTokenizer((_QWEN2,))
_GPT4O_STYLE = PreTokenizer(
    (rf"{_CASED}(?:{_CONTRACTIONS})?|\p{{N}}{{1,3}}|{_CASED_TAIL}",),
)
_DEEPSEEK3_STYLE = PreTokenizer((r"\p{N}{1,3}", "[一-龥\u3040-ヿ]+", _DEEPSEEK3))

_STYLES = {
    "default": PreTokenizer((_PUNCTUATION, _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "falcon": PreTokenizer((r"[\p{P}$+<=>^~|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "gpt-2 phi-2 gigachat a.x-4.0 mellum modern-bert exaone4 mpt olmo jais trillion "
    "granite-docling": _GPT2_STYLE,
    "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2": _DIGITS_STYLE,
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2": _LLAMA3_STYLE,
    "dbrx smaug-bpe chatglm-bpe": _LLAMA3_PLAIN,
    "glm4 glm5": PreTokenizer((_LLAMA3,), ignore_merges=True),
    "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2": _QWEN2_STYLE,
    "qwen35": PreTokenizer((_QWEN35,)),
    "tekken": PreTokenizer((rf"{_CASED}|\p{{N}}|{_CASED_TAIL}",), ignore_merges=True, add_bos=True),
    "gpt-4o llama4 kanana2 minimax-m2": _GPT4O_STYLE,
    "deepseek-v3 hunyuan-dense joyai-llm": _DEEPSEEK3_STYLE,
}
PRE_TOKENIZERS = {name: style for names, style in _STYLES.items() for name in names.split()}


def pre_tokenizer(name: str) -> PreTokenizer:
    """The scheme called `name`; InputError when it is unknown."""
    try:
        return PRE_TOKENIZERS[name]
    except KeyError:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise InputError(f"tokenizer.ggml.pre is {name!r}. Known: {known}") from None
