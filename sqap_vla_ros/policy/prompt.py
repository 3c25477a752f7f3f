"""Tokenise an instruction exactly as CogACT was trained: template, BOS, two appended ids.

The Llama-2 tokenizer is not part of the CogACT repository; it is given as a folder or a file.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from tokenizers import Tokenizer

from sqap_vla_ros.contracts import UnfitObservation, unreadable
from sqap_vla_ros.policy.checkpoints.foreign import file_problem, kind_of
from sqap_vla_ros.policy.config import PromptConfig

Encode = Callable[[str], list[int]]


class PromptTokenizer:
    """Turns an instruction into ids [L], the last of which is the cognition token.

    vocabulary: number of ids that the decoder embeds; a tokenizer that makes more belongs to another model.
    name, data: `tokenizer.json` (tokenizers) or `tokenizer.model` (sentencepiece) and the file's content; kept as
        `file`, so that a checkpoint can store them. shown: the file's own name, for errors.
    Raises ValueError where the content is not a tokenizer or does not fit.
    """

    FILES = ("tokenizer.json", "tokenizer.model")

    def __init__(self, config: PromptConfig, vocabulary: int, name: str, data: bytes, *, shown: str = "") -> None:
        self.config = config
        self.file = (name, data)
        self._vocabulary = vocabulary
        shown = shown or name
        with _one_error(f"{shown} is not a tokenizer that can be read"):
            self._encode, size = _sentencepiece(data) if name.endswith(".model") else _tokenizers(data)
        if size > vocabulary:
            raise ValueError(f"{shown} makes {size} ids but the model embeds only {vocabulary}: it is another model's")

    @functools.cached_property
    def digest(self) -> str:
        """The sha256 of the file's content, in hex."""
        return hashlib.sha256(self.file[1]).hexdigest()

    @classmethod
    def load(cls, path: str | Path, config: PromptConfig, vocabulary: int) -> PromptTokenizer:
        """Load a file, or one of `FILES` from a folder. Raises FileNotFoundError where there is none."""
        path = Path(path).expanduser()
        if path.is_dir():
            found = [path / name for name in cls.FILES if (path / name).is_file()]
            if not found:
                raise FileNotFoundError(f"{path} holds no tokenizer: put {' or '.join(cls.FILES)} of Llama-2 there")
            path = found[0]
        if not path.is_file():
            fault = f"is {kind_of(path)} and no file" if path.exists() else "does not exist"
            raise FileNotFoundError(f"tokenizer {path} {fault}: give Llama-2's {' or '.join(cls.FILES)}")
        if problem := file_problem(path):
            raise ValueError(problem)
        name = cls.FILES[1] if path.suffix == ".model" else cls.FILES[0]
        try:
            data = path.read_bytes()
        except OSError as error:  # of a failing disk; its own text names no file
            raise OSError(error.errno, error.strerror, str(path)) from error
        return cls(config, vocabulary, name, data, shown=str(path))

    def __call__(self, instruction: str) -> list[int]:
        """Return the ids. Raises UnfitObservation for a blank instruction or one that does not fit the prompt."""
        if problem := unreadable(instruction):
            raise UnfitObservation(problem)
        words = instruction.strip()
        text = self.config.template.replace("{instruction}", words.lower()).rstrip()
        with _one_error(f"{self.file[0]} cannot encode {words[:40]!r}"):
            encoded = self._encode(text)
        if not all(0 <= token < self._vocabulary for token in encoded):
            raise ValueError(f"{self.file[0]} makes ids above the {self._vocabulary} that the model embeds")
        ids = [self.config.bos, *encoded, *self.config.suffix]
        if len(ids) > self.config.max_tokens:
            raise UnfitObservation(
                f"the instruction is too long: {len(ids)} tokens, at most {self.config.max_tokens} fit "
                f"(it begins {words[:40]!r})"
            )
        return ids


@contextlib.contextmanager
def _one_error(what: str) -> Iterator[None]:
    """Turn whatever the libraries raise into a ValueError: RuntimeError, bare Exception, and panics, which are none."""
    try:
        yield
    except BaseException as error:
        if not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
            raise
        raise ValueError(f"{what}: {error}") from error


def _tokenizers(data: bytes) -> tuple[Encode, int]:
    tokenizer = Tokenizer.from_buffer(data)
    # an instruction is data: "</s>" in it is four characters, not the cognition token
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids, tokenizer.get_vocab_size()


def _sentencepiece(data: bytes) -> tuple[Encode, int]:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_proto=data)
    return lambda text: list(model.encode(text)), model.get_piece_size()
