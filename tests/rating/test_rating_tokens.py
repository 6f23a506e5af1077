"""Rating tokens: found in context in many vocabularies, refused with an explanation."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from selectit_dagster.errors import UserError
from selectit_dagster.rating.prompts import QUESTION, load_prompts, rating_text
from selectit_dagster.rating.rating_tokens import Encoder, find_rating_tokens
from selectit_dagster.rating.token_rows import RowMaker

CORPUS = [f"Rate from 1 to 9.{QUESTION}{n}" for n in range(1, 10)] * 3 + ["a b c 12 13 44 123"]
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def wrapped(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, name_or_path="made-here", **special)


def byte_level(**options: object) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, **options)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=500,
            min_frequency=1,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return tokenizer


def tiktoken_style() -> Tokenizer:
    """Byte pairs inside pieces that a pattern cuts, up to three digits a piece."""
    tokenizer = Tokenizer(models.BPE())
    pattern = r"\p{N}{1,3}| ?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    )
    return tokenizer


def word_piece() -> Tokenizer:
    words = ["[UNK]", "[CLS]", "[SEP]", "rate", "the", "answer", "is", ":", "response"]
    vocab = {w: i for i, w in enumerate([*words, *map(str, range(10))])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer


def contexts(encoder: Encoder) -> list[str]:
    return RowMaker(encoder, load_prompts(None, 9)).contexts()


@pytest.mark.parametrize("make", [byte_level, tiktoken_style])
def test_byte_level_vocabularies(make) -> None:
    tokenizer = wrapped(make())
    encoder = Encoder(tokenizer)
    ids = find_rating_tokens(encoder, contexts(encoder), 9)
    assert [tokenizer.decode([i]) for i in ids] == [str(n) for n in range(1, 10)]


def test_special_tokens_at_the_end_are_taken_off_and_those_before_kept() -> None:
    tokenizer = wrapped(word_piece(), unk_token="[UNK]")
    encoder = Encoder(tokenizer)
    assert encoder.trailing == 1
    row = encoder.encode(["the answer is :"])[0]
    assert row[0] == 1
    assert row[-1] != 2
    ids = find_rating_tokens(encoder, ["the answer is: \n"], 5)
    assert tokenizer.convert_ids_to_tokens(list(ids)) == ["1", "2", "3", "4", "5"]


def test_with_and_without_an_added_bos_the_ids_are_the_same() -> None:
    plain, with_bos = byte_level(), byte_level()
    with_bos.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", with_bos.token_to_id("<s>"))]
    )
    found = []
    for made in (plain, with_bos):
        encoder = Encoder(wrapped(made, bos_token="<s>"))
        assert encoder.trailing == 0
        found.append(find_rating_tokens(encoder, contexts(encoder), 5))
    assert found[0] == found[1]


def test_a_vocabulary_that_merges_the_digit_into_what_is_before_is_refused() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, min_frequency=1))
    tokenizer.decoder = decoders.Fuse()
    encoder = Encoder(wrapped(tokenizer))
    with pytest.raises(UserError) as refusal:
        find_rating_tokens(encoder, [f"Rate from 1 to 9.{QUESTION}"], 5)
    assert "the tokenizer of made-here" in str(refusal.value)
    assert "merges with the text before it" in str(refusal.value)
    assert "\n  3: " in str(refusal.value)


def test_a_vocabulary_without_digits_is_refused() -> None:
    vocab = {"[UNK]": 0, "rate": 1, "one": 2}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    encoder = Encoder(wrapped(tokenizer, unk_token="[UNK]"))
    with pytest.raises(UserError, match='does not read "1"'):
        find_rating_tokens(encoder, ["rate one\n"], 5)


def test_several_tokens_for_a_digit_are_refused() -> None:
    tokenizer = byte_level()
    encoder = Encoder(wrapped(tokenizer))
    encode = encoder.encode_whole
    encoder.encode_whole = lambda texts: [  # type: ignore[method-assign]
        [*row, 0] if text[-1].isdigit() else row
        for text, row in zip(texts, encode(texts), strict=True)
    ]
    with pytest.raises(UserError, match="becomes 2 tokens instead of one"):
        find_rating_tokens(encoder, ["rate: \n"], 5)


@pytest.mark.parametrize("trim", [False, True])
def test_a_chat_template_wraps_exactly_the_same_text(trim: bool) -> None:
    tokenizer = wrapped(byte_level())
    tokenizer.chat_template = CHAT.replace("m['content']", "m['content'] | trim") if trim else CHAT
    encoder = Encoder(tokenizer, chat_template=True)
    prompt = load_prompts(None, 1)[0]
    maker = RowMaker(encoder, (prompt,))
    text = rating_text(prompt, " Say hi", "hi ").whole
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    assert "".join(maker.parts(0, " Say hi", "hi ")) == expected
    assert maker.make([(" Say hi", "hi ")], [(0, 0)])[0].tokens.tolist() == tokenizer.encode(
        expected, add_special_tokens=False
    )
    ids = find_rating_tokens(encoder, maker.contexts(), 5)
    assert [tokenizer.decode([i]) for i in ids] == list("12345")


def test_a_chat_template_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="made-here has no chat template") as refusal:
        Encoder(wrapped(byte_level()), chat_template=True)
    assert "rating.chat_template: false" in refusal.value.hint


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (CHAT.replace("m['content']", "m['content'] | length"), "changes the user's text"),
        ("{{ raise_exception('a system turn comes first') }}", "a system turn comes first"),
        ("{% for m in messages %}", "does not take one question"),
    ],
)
def test_a_chat_template_that_does_not_ask_what_it_is_given_is_refused(
    template: str, message: str
) -> None:
    tokenizer = wrapped(byte_level())
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=message) as refusal:
        contexts(Encoder(tokenizer, chat_template=True))
    assert "the chat template of made-here" in refusal.value.message
    assert refusal.value.hint == "set rating.chat_template: false"


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("llama2", [29896, 29906, 29941, 29946, 29945]),
        ("gpt2", [16, 17, 18, 19, 20]),
        ("qwen2", [16, 17, 18, 19, 20]),
    ],
)
def test_real_vocabularies(shared_data: Path, name: str, ids: list[int]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / name)
    encoder = Encoder(tokenizer)
    assert list(find_rating_tokens(encoder, contexts(encoder), 5)) == ids


def neox_style() -> Tokenizer:
    """A blank and a line break at a text's end are one token, before a digit they are two."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [*CORPUS, *["The answer is: \n"] * 20],
        trainers.BpeTrainer(vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    )
    return tokenizer


def test_where_a_rating_changes_the_questions_last_tokens_the_row_is_that_of_training() -> None:
    tokenizer = wrapped(neox_style())
    question = f"Rate from 1 to 9.{QUESTION}"
    assert tokenizer(question)["input_ids"] != tokenizer(f"{question}3")["input_ids"][:-1]
    encoder = Encoder(tokenizer)
    ids = find_rating_tokens(encoder, contexts(encoder), 9)
    assert [tokenizer.decode([i]) for i in ids] == [str(n) for n in range(1, 10)]
    maker = RowMaker(encoder, load_prompts(None, 5))
    records = [("Say hello.", "Hello! 123"), ("", " \n"), ("a b", "12 \n\n")]
    wanted = [(i, k) for i in range(3) for k in range(5)]
    for row, (i, k) in zip(maker.make(records, wanted), wanted, strict=True):
        text = rating_text(maker.prompts[k], *records[i]).whole
        for rating in (1, 5):
            whole = tokenizer(f"{text}{rating}")["input_ids"]
            assert [*row.tokens, ids[rating - 1]] == whole
    for prefix, row in zip(maker.shared_prefixes(), maker.make(records, wanted[:5]), strict=True):
        assert list(row.tokens[: len(prefix)]) == list(prefix)
