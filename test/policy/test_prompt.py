"""Prompts: the exact text, BOS, the appended ids; the shipped tokenizer."""

import errno
import json
from importlib import resources

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from sqap_vla_ros.policy.config import COGACT_BASE, MICRO, PromptConfig
from sqap_vla_ros.policy.micro import tokenizer as micro_tokenizer
from sqap_vla_ros.policy.prompt import PromptTokenizer

# the published prompt, word by word; ids as in Llama-2 where they are known
WORDS = {"In:": 512, "What": 1724, "action": 3158, "should": 881, "the": 278, "robot": 19964, "take": 2125, "to": 304}
TEXT = "In: What action should the robot take to pick up the can?\nOut:"


def llama_like() -> bytes:
    """A word-level tokenizer that adds BOS by itself and knows </s>, as Llama-2's tokenizer.json does."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **WORDS}
    for word in ("pick", "up", "can?", "Out:"):
        vocabulary[word] = 30000 + len(vocabulary)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    tokenizer.enable_truncation(4)  # what a stored tokenizer says about length is not ours
    return tokenizer.to_str().encode()


@pytest.fixture
def tokenize() -> PromptTokenizer:
    return PromptTokenizer(COGACT_BASE.prompt, COGACT_BASE.decoder.vocabulary, "tokenizer.json", llama_like())


def test_a_file_that_is_no_tokenizer_is_called_by_its_own_name(tmp_path, monkeypatch):
    file = tmp_path / "config.json"
    file.write_text("{}")
    with pytest.raises(ValueError, match=f"{file} is not a tokenizer that can be read"):
        PromptTokenizer.load(file, MICRO.prompt, MICRO.decoder.vocabulary)

    def fail(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("pathlib.Path.read_bytes", fail)
    with pytest.raises(OSError, match=f"Input/output error: '{file}'"):
        PromptTokenizer.load(file, MICRO.prompt, MICRO.decoder.vocabulary)


def test_text_is_the_published_prompt(tokenize):
    seen = []
    tokenize._encode = lambda text: seen.append(text) or []
    tokenize("  Pick up the CAN ")
    assert seen == [TEXT]


def test_ids_are_bos_text_and_the_two_appended(tokenize):
    ids = tokenize("pick up the can")
    assert ids[:9] == [1, 512, 1724, 3158, 881, 278, 19964, 2125, 304]
    assert ids[-2:] == [29871, 2]
    assert ids.count(1) == 1
    assert len(ids) == 1 + len(TEXT.split()) + 2


def test_special_tokens_in_an_instruction_are_only_text():
    ids = micro_tokenizer.micro_tokenizer()("pick </s> up <s>")
    assert ids.count(2) == 1
    assert ids.count(1) == 1


def test_braces_are_no_format(tokenize):
    assert tokenize("pick {instruction} {0} }{") == tokenize("pick x y z")


def test_sentencepiece_model_gives_the_same_shape(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "corpus.txt").write_text((TEXT + "\n") * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"), model_prefix=str(tmp_path / "tokenizer"), vocab_size=60, model_type="bpe",
        minloglevel=2,
    )  # fmt: skip
    prompt = PromptConfig(pad=99, suffix=(98, 2))
    ids = PromptTokenizer.load(tmp_path, prompt, vocabulary=100)("pick up the can")
    assert ids[0] == 1
    assert ids[-2:] == [98, 2]
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert ids[1:-2] == model.encode(TEXT)


def test_missing_and_foreign_tokenizers_are_named(tmp_path):
    vocabulary = COGACT_BASE.decoder.vocabulary
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer: put tokenizer\.json or tokenizer\.model"):
        PromptTokenizer.load(tmp_path, COGACT_BASE.prompt, vocabulary)
    with pytest.raises(FileNotFoundError, match=r"nothing\.json does not exist"):
        PromptTokenizer.load(tmp_path / "nothing.json", COGACT_BASE.prompt, vocabulary)
    for name in PromptTokenizer.FILES:
        with pytest.raises(ValueError, match=f"{name} is not a tokenizer that can be read"):
            PromptTokenizer(COGACT_BASE.prompt, vocabulary, name, b'{"not": "one"}')
    with pytest.raises(ValueError, match="makes 421 ids but the model embeds only 100"):
        PromptTokenizer(
            PromptConfig(pad=9, suffix=(2,)), 100, "tokenizer.json", micro_tokenizer.build().to_str().encode()
        )


def test_shipped_tokenizer_is_what_its_script_makes():
    shipped = json.loads((resources.files("sqap_vla_ros.policy.micro") / micro_tokenizer.FILE).read_text())
    assert shipped == json.loads(micro_tokenizer.build().to_str())


def test_shipped_tokenizer_is_short_on_its_own_words_and_total_on_others():
    tokenize = micro_tokenizer.micro_tokenizer()
    assert len(tokenize("pick up the red block")) <= 22
    assert tokenize.config == MICRO.prompt
    assert len(set(tokenize("拿起红色方块"))) > 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"template": "no place"}, "exactly once, got 'no place'"), ({"suffix": ()}, r"cognition token, got \(\)")],
)
def test_bad_prompts_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        PromptConfig(**changes)
