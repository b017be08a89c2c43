"""Real text tokenizers of Hugging Face, trained on the spot: one of each family; and a small LLaMA."""

import json

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_CORPUS = [
    "a cat on a sofa and the dog that runs in the snow",
    "what is on the image? USER: ASSISTANT:",
    "eine Straße in Zürich, drei Schneemänner",
    "<|code-7|> <|image-begin-0123456789ab|> </s> <EOS> <|endoftext|> [SEP] <image>",
] * 8


def gpt2_like():
    """Byte-level BPE: one special token for everything, no BOS put before texts."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    _train(
        made, trainers.BpeTrainer, 320, ["<|endoftext|>"], initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=end, eos_token=end, unk_token=end)


def llama_like():
    """SentencePiece-like BPE with byte fallback; puts <s> before texts."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    _train(made, trainers.BpeTrainer, 150, ["<unk>", "<s>", "</s>"])
    content = json.loads(made.to_str())
    words = content["model"]["vocab"]
    words |= {f"<0x{byte:02X}>": len(words) + byte for byte in range(256)}
    made = Tokenizer.from_str(json.dumps(content))
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram():
    """SentencePiece-like Unigram, whose model knows </s> as a word; puts <s> before texts and </s> after."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    _train(made, trainers.UnigramTrainer, 120, ["<unk>", "<s>", "</s>"], unk_token="<unk>")
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def bert_like():
    """Uncased WordPiece: puts [CLS] before texts, and has nothing called EOS."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    _train(made, trainers.WordPieceTrainer, 160, ["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]"
    )


def slow_bytes():
    """Written in Python, not on the tokenizers library; puts </s> after texts."""
    return ByT5Tokenizer()


TOKENIZERS = {made.__name__: made for made in (gpt2_like, llama_like, unigram, bert_like, slow_bytes)}


def _train(made, trainer, size, special, **options):
    made.train_from_iterator(_CORPUS, trainer(vocab_size=size, special_tokens=special, show_progress=False, **options))


def small_llama(rows, hidden_size=16, **options):
    """A LLaMA of one layer, always with the same weights."""
    torch.manual_seed(1)
    size = {"hidden_size": hidden_size, "intermediate_size": 2 * hidden_size}
    size |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=rows, **(size | options)))
