"""The tokenizer of the miniature world: whole words, bytes, single digits, single newlines."""

import random
from collections import Counter
from typing import TYPE_CHECKING, Final

from tools.miniature.corpus import document, rating_guides

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer
    from transformers import PreTrainedTokenizerFast

CONTEXT: Final = 512
BOS, EOS, PAD, UNKNOWN = "<s>", "</s>", "<pad>", "<unk>"
# A word seen less often than this in the sample is spelt with shorter pieces and bytes.
_LEAST_COUNT: Final = 10


def _splitter() -> "PreTokenizer":
    """Return the pre-tokenizer: a newline and a digit are always a piece of their own.

    The text of a record then tokenises the same alone and behind a rating prompt, and every
    rating is one token.
    """
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n"), "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def _vocabulary(seed: int, documents: int) -> dict[str, int]:
    """Return special tokens, all bytes, then the words of a corpus sample, commonest first."""
    from tokenizers import pre_tokenizers

    rng = random.Random(f"tokenizer:{seed}")  # noqa: S311 - repeatable, not secret
    guides, splitter = rating_guides(), _splitter()
    counts: Counter[str] = Counter()
    for _ in range(documents):
        for text, _weight in document(rng, guides):
            counts.update(piece for piece, _span in splitter.pre_tokenize_str(text))
    fixed = [PAD, BOS, EOS, UNKNOWN, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    known = set(fixed)
    words = sorted(
        (word for word, count in counts.items() if count >= _LEAST_COUNT and word not in known),
        key=lambda word: (-counts[word], word),
    )
    return {token: index for index, token in enumerate([*fixed, *words])}


def build_tokenizer(seed: int, documents: int = 20_000) -> "PreTrainedTokenizerFast":
    """Build the tokenizer from `documents` corpus documents drawn with `seed`.

    Words are matched greedily, longest piece first; since every byte is a piece, any text can be
    written. No special token is added to a text unless the caller does so.
    """
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    model = models.WordPiece(
        vocab=_vocabulary(seed, documents),
        unk_token=UNKNOWN,
        continuing_subword_prefix="",
        max_input_chars_per_word=100_000,
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = _splitter()
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
