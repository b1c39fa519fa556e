"""A WordPiece tokenizer learned from captions, for backbones trained from scratch.

The vocabulary depends on the captions alone: their order does not matter and equal captions give
equal ids. Nothing here reads files; pretrained tokenizers come with their backbone.
"""

from collections import Counter
from collections.abc import Iterable
from itertools import islice
from typing import Any

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_MOST_CAPTIONS = 200_000
_MOST_CHARACTERS = 500  # of the alphabet; rarer ones are unknown
_MOST_OF_A_CAPTION = 2000  # characters: one huge caption must not shape the vocabulary or the time


def train_tokenizer(captions: Iterable[str], *, vocabulary_size: int) -> Any:
    """A BERT tokenizer (lower-casing WordPiece) with about `vocabulary_size` pieces."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import BertTokenizer

    normalizer = normalizers.BertNormalizer(lowercase=True)
    texts = [normalizer.normalize_str(text[:_MOST_OF_A_CAPTION]) for text in islice(captions, _MOST_CAPTIONS)]
    alphabet = _alphabet(texts)
    rare = {ord(character): " " for text in texts for character in set(text) - alphabet}
    learner = Tokenizer(models.WordPiece(unk_token=SPECIAL[1]))
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # Left alone, the trainer numbers inner characters as it meets them in a hash map, differently each
    # time, and breaks ties by those numbers. Named beforehand, they have fixed ones.
    named = [*SPECIAL, *(f"##{character}" for character in sorted(alphabet))]
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(vocabulary_size, len(named) + len(alphabet)),
        special_tokens=named,
        show_progress=False,
        min_frequency=2,
    )
    learner.train_from_iterator((text.translate(rare) for text in texts), trainer)
    return BertTokenizer(vocab=learner.get_vocab(), do_lower_case=True)


def _alphabet(texts: Iterable[str]) -> set[str]:
    """The commonest characters, ties by code point, without spaces."""
    counts = Counter(character for text in texts for character in text if not character.isspace())
    commonest = sorted(counts, key=lambda character: (-counts[character], character))
    return set(commonest[:_MOST_CHARACTERS])
