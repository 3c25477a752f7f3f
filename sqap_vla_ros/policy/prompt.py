"""Instruction to token ids, exactly as CogACT was trained: template, BOS, two appended ids.

The Llama-2 tokenizer is not part of the CogACT repository; it is given as a folder or a file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer

from sqap_vla_ros.policy.config import PromptConfig

_FILES = ("tokenizer.json", "tokenizer.model")


class PromptTokenizer:
    """Callable instruction -> ids [L]; the last id is the cognition token.

    encode: text to ids without BOS or any other special token.
    source: where the tokenizer came from, for messages.
    """

    def __init__(self, config: PromptConfig, encode: Callable[[str], list[int]], source: str) -> None:
        self.config = config
        self.source = source
        self._encode = encode

    @classmethod
    def load(cls, path: str | Path, config: PromptConfig, vocabulary: int) -> PromptTokenizer:
        """From `tokenizer.json`, `tokenizer.model` (sentencepiece) or a folder that holds one of them.

        vocabulary: ids the decoder embeds; a tokenizer that makes more of them belongs to another model.
        Raises FileNotFoundError where there is none, ValueError where the file is not a tokenizer or does not fit.
        """
        path = Path(path).expanduser()
        if path.is_dir():
            found = [path / name for name in _FILES if (path / name).is_file()]
            if not found:
                raise FileNotFoundError(f"{path} holds no tokenizer: put {' or '.join(_FILES)} of Llama-2 there")
            path = found[0]
        if not path.is_file():
            raise FileNotFoundError(f"tokenizer {path} does not exist: give Llama-2's {' or '.join(_FILES)}")
        try:
            encode, size = _sentencepiece(path) if path.suffix == ".model" else _tokenizers(path)
        except Exception as error:  # both libraries raise bare Exception or RuntimeError on foreign files
            raise ValueError(f"{path} is not a tokenizer that can be read: {error}") from error
        if size > vocabulary:
            raise ValueError(f"{path} makes {size} ids but the model embeds only {vocabulary}: it is another model's")
        return cls(config, encode, str(path))

    def __call__(self, instruction: str) -> list[int]:
        """Raises ValueError for a blank instruction or one that does not fit the prompt."""
        words = instruction.strip()
        if not words:
            raise ValueError("the instruction is empty: say what to do, for example 'pick up the can'")
        text = self.config.template.format(instruction=words.lower()).rstrip()
        ids = [self.config.bos, *self._encode(text), *self.config.suffix]
        if len(ids) > self.config.max_tokens:
            raise ValueError(
                f"the instruction is too long: {len(ids)} tokens, at most {self.config.max_tokens} fit "
                f"(it begins {words[:40]!r})"
            )
        return ids


def _tokenizers(path: Path) -> tuple[Callable[[str], list[int]], int]:
    tokenizer = Tokenizer.from_file(str(path))
    # an instruction is data: "</s>" in it is four characters, not the cognition token
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids, tokenizer.get_vocab_size()


def _sentencepiece(path: Path) -> tuple[Callable[[str], list[int]], int]:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return lambda text: list(model.encode(text)), model.get_piece_size()
