"""The smallest CLIP, SigLIP and SigLIP 2, with random weights, saved as their authors' checkpoints are."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
)

_TOKENIZERS = {"clip": "CLIPTokenizer", "siglip": "SiglipTokenizer", "siglip2": "GemmaTokenizer"}
KINDS = ("clip", "siglip", "siglip2")
_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT_LIMIT = 12


def tiny_dual(kind: str, folder: Path, captions: Iterable[str]) -> Path:
    """Write a tiny network of `kind` with its tokenizer and preprocessing into `folder`, and return it."""
    torch.manual_seed(0)
    tokenizer = _clip_tokenizer(captions) if kind == "clip" else _siglip_tokenizer(captions)
    vision = _TOWER | {"image_size": 16, "patch_size": 8}
    text = _TOWER | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TEXT_LIMIT,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    preprocessing = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}
    if kind == "clip":
        network = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=24))
        preprocessing |= {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
        preprocessing |= {"do_center_crop": True, "image_processor_type": "CLIPImageProcessor"}
    elif kind == "siglip":
        network = SiglipModel(SiglipConfig(vision_config=vision, text_config=text))
        preprocessing |= {"size": {"height": 16, "width": 16}, "image_processor_type": "SiglipImageProcessor"}
    else:
        vision |= {"num_patches": 4}
        network = Siglip2Model(Siglip2Config(vision_config=vision, text_config=text))
        preprocessing |= {"patch_size": 8, "max_num_patches": 4, "image_processor_type": "Siglip2ImageProcessor"}
    if kind != "clip":
        with torch.no_grad():
            network.logit_scale.fill_(4.7)
            network.logit_bias.fill_(-12.0)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    described = json.loads((folder / "tokenizer_config.json").read_text()) | {"tokenizer_class": _TOKENIZERS[kind]}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return folder


def _clip_tokenizer(captions: Iterable[str]) -> CLIPTokenizer:
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(False)])
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz")]
    special = ["<|startoftext|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=200, end_of_word_suffix="</w>", special_tokens=[*special, *letters], show_progress=False
    )
    learner.train_from_iterator((text.lower() for text in captions), trainer)
    learned = json.loads(learner.to_str())["model"]
    return CLIPTokenizer(vocab=learned["vocab"], merges=[tuple(merge) for merge in learned["merges"]])


def _siglip_tokenizer(captions: Iterable[str]) -> PreTrainedTokenizerFast:
    learner = Tokenizer(models.BPE(unk_token="<unk>"))
    learner.pre_tokenizer, learner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=200,
        special_tokens=["<pad>", "</s>", "<unk>"],
        initial_alphabet=[*"abcdefghijklmnopqrstuvwxyz"],
        show_progress=False,
    )
    learner.train_from_iterator((text.lower() for text in captions), trainer)
    learner.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", learner.token_to_id("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=learner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=TEXT_LIMIT
    )
