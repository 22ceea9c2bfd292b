"""Reads synthetic repositories with the libraries that read real ones. Prints what it did; fails if something is not
as it is with a real one.

    readers.py FOLDER    FOLDER has 270m complete, 1b, 4b, 12b, 27b without weights but with shapes.json
"""

import json
import os
import sys

import sentencepiece
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

TEXTS = [
    "Hello, world!",
    "The quick  brown fox jumps\n\n over\tthe lazy dog. 1234 <b>x</b>",
    "torlimba dersun NATO ETAS babbabbab",
    "ÄÖÜ ß ☃ 漢字 日本 🙂 Привет\x00\x7f",
    "def f(x):\n    return x + 1\n",
    "<start_of_turn>user\nHi<end_of_turn>\n",
    "",
]


def tokenizers(folder):
    ours = Tokenizer.from_file(folder + "/tokenizer.json")
    theirs = sentencepiece.SentencePieceProcessor(model_file=folder + "/tokenizer.model")
    assert theirs.vocab_size() == 262144 and ours.get_vocab_size() == 262145
    for i in range(262144):
        assert ours.id_to_token(i) == theirs.id_to_piece(i), i
    assert [ours.token_to_id(t) for t in ("<bos>", "<start_of_turn>", "<end_of_turn>", "<image_soft_token>")] == [2, 105, 106, 262144]
    for text in TEXTS:
        ids = ours.encode(text).ids
        assert ids == [2] + theirs.encode(text), text
        assert ours.decode(ids, skip_special_tokens=False) == "<bos>" + text, text
    print("tokenizer.json and tokenizer.model agree on", len(TEXTS), "texts and give them back")


def chat(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " Hi "},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": [{"type": "text", "text": "And? "}]},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
        "<start_of_turn>user\nAnd?<end_of_turn>\n<start_of_turn>model\n"
    ), text
    print("chat template of", type(tokenizer).__name__, "renders")


def shapes(folder):
    """Names and shapes are those that Transformers builds from config.json."""
    config = AutoConfig.from_pretrained(folder)
    vision = hasattr(config, "vision_config")
    with torch.device("meta"):
        model = (AutoModelForImageTextToText if vision else AutoModelForCausalLM).from_config(config)
    want = {k: list(v.shape) for k, v in model.state_dict().items() if k != "lm_head.weight"}
    with open(folder + "/shapes.json") as f:
        have = json.load(f)
    if vision:  # the names in files are older than those in memory
        have = {k.replace("language_model.model.", "language_model.").replace(".vision_model.", "."): v for k, v in have.items()}
        want = {k.removeprefix("model."): v for k, v in want.items()}
    assert have == want, set(have) ^ set(want)
    print(os.path.basename(folder), "has the", len(want), "tensors of", type(model).__name__)


def picture(folder):
    from PIL import Image

    processor = AutoProcessor.from_pretrained(folder)
    content = [{"type": "image", "image": Image.new("RGB", (900, 700))}, {"type": "text", "text": "What?"}]
    batch = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
    assert (batch["input_ids"] == 262144).sum() == 256 and batch["pixel_values"].shape == (1, 3, 896, 896)
    print(type(processor).__name__, "makes 256 tokens of a picture")


def generate(folder):
    with safe_open(folder + "/model.safetensors", "pt") as f:
        assert len(f.keys()) == 236 and f.get_tensor("model.norm.weight").dtype == torch.bfloat16
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, output_loading_info=True)
    assert not any(info.values()), info
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in ("Hello, world!", "torlimba"):
        ids = tokenizer(text, return_tensors="pt").input_ids
        new = model.generate(ids, max_new_tokens=16, do_sample=False)[0][ids.shape[1]:].tolist()
        assert len(set(new)) > 4, new
        print(repr(text), "is followed by", repr(tokenizer.decode(new)))


root = sys.argv[1]
tokenizers(root + "/270m")
for size in ("270m", "1b", "4b"):
    chat(f"{root}/{size}")
for size in ("270m", "1b", "4b", "12b", "27b"):
    shapes(f"{root}/{size}")
picture(root + "/4b")
generate(root + "/270m")
