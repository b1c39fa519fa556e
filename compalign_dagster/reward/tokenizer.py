"""A WordPiece tokenizer learned from captions, for backbones trained from scratch.

The vocabulary depends on the captions alone (most frequent first, ties by spelling), never on
training order. Nothing here reads files; pretrained tokenizers come with their backbone.
"""

from collections.abc import Iterable
from typing import Any

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train_tokenizer(captions: Iterable[str], *, vocabulary_size: int) -> Any:
    """A BERT tokenizer (lower-casing WordPiece) with at most `vocabulary_size` pieces."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import BertTokenizer

    learner = Tokenizer(models.WordPiece(unk_token=SPECIAL[1]))
    learner.normalizer = normalizers.BertNormalizer(lowercase=True)
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    learner.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary_size, special_tokens=list(SPECIAL), show_progress=False, min_frequency=2
    )
    # One caption of a million characters must not shape the vocabulary or the time this takes.
    learner.train_from_iterator((text[:2000] for text in captions), trainer)
    return BertTokenizer(vocab=learner.get_vocab(), do_lower_case=True)
