"""Makes tests/reference/tokenizer/: small tokenizers of the kinds of GPT-2, Llama 3, Qwen, Llama 2 and others, trained by
Hugging Face tokenizers, and what they make of texts: cases.json, [{"tokenizer", "text", "ids"}]. Usage: tokenizer.py
(tokenizers 0.23.3; the text is that of Debian's package bible-kjv)."""

import json
import os
import random
import subprocess

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tokenizer")
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
SPACE = "\u2581"
TEXTS = [
    "",
    "a",
    "In the beginning God created the heaven and the earth.",
    "I'll say they've done what he'd do; it's WE'RE DON'T i'M",
    "  two  spaces   three\n\n\nthree lines\r\n\r\ntab\tand \t mixed \n end  ",
    "0 12 345 6789 1234567 3.14 1,000,000 x86_64 Ⅷ ½ ٣٤٥",
    "naïve café Ελληνικά русский язык 日本語テキスト 한국어 עברית العربية हिन्दी",
    "e\u0301 is not \u00e9; \u200d zero \u00a0 widths \u2003 and \u3000 spaces\u0085next\u2028line",
    "😀 👩‍👩‍👧 🇩🇪 ✋🏽 ∑∫√ → ← ½ ™",
    "end<|endoftext|>begin <|begin_of_text|> <|end_of_text|><|endoftext|><|endoftex",
    "____....----!!!???///\\\\\\ (((( )))) ]]}}>> #include <stdio.h> int main(void) { return 0; }",
    "\x00\x01\x1f\x7f control",
    "antidisestablishmentarianism" * 3 + "ABRAHAMISAACJACOB" * 9,
    "   ",
    "\n",
    " \n \n",
    "a\u0300\u0301\u0302b",
    "the the the the the the the the",
    "lll llll lllll eeeeeee sss ssss tttt ooooo ffffff",
    "xyzzy xyzzyx (xyzzy)",
    "x \n  \n \n  \ny \n  \n",
    "<|end <|en <|endof <|endoftext| <|endoftext|> <|end<|end",
]
# Characters that compose, decompose, reorder, and those that look as if they did.
COMPOSING = [
    "e\u0301 a\u0308\u0323 a\u0323\u0308 \u1e9b\u0323 \u0344 \u2126 \u212b \u0958 \u0915\u093c \ufb1d \ufb01 >\u0338",
    "\u1112\u1161\u11ab\u1100\u1173\u11af \ud55c\u11a8 \uac00\u11a8 \u3131 \u304b\u3099 \u30cf\u309a \u0b47\u0b3e \u09c7\u09be",
    "\u0301begins with a mark, n\u0303\u0303\u0303 and many" + "\u0316\u0301" * 20,
    "<|endoftext|>\u0338\u0301e\u0301<|endoftext|>",
]
SPACES = [
    " a", "  a", "a ", "\u2581a\u2581 b", "\u2581", "a\u2581b c", "<s>a</s> b</s>  c<s></s>", "</s>", "</s> ", " </s>",
    "Ω≈ç√ \x00 \x7f 中 <0x41> <unk>", "a\nb\n c\n\n  d\t e",
]


def scripture():
    text = subprocess.run(["bible", "-f", "Genesis1:1-Exodus20:26"], capture_output=True, text=True, check=True).stdout
    return [line.split(" ", 1)[1] for line in text.splitlines() if " " in line]


def train(splitter, special, vocabulary, ignore_merges):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Enough of the odd texts that joints across their characters and spaces are learned.
    tokenizer.train_from_iterator(scripture() + TEXTS * 200, trainer)
    return tokenizer


def train_characters(vocabulary, pieces):
    """Llama 2's kind: three special tokens, 256 bytes, the most frequent characters, and merges over the piece."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.pre_tokenizer = pieces
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, limit_alphabet=70, show_progress=False)
    tokenizer.train_from_iterator(scripture() + TEXTS[:6] * 200, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    words = ["<unk>", "<s>", "</s>"] + ["<0x%02X>" % byte for byte in range(256)]
    words += sorted(model["vocab"], key=model["vocab"].get)
    described = models.BPE(
        vocab={word: number for number, word in enumerate(words)},
        merges=[tuple(merge) for merge in model["merges"]],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(described)
    tokenizer.add_special_tokens(words[:3])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


def random_texts(count, alphabet="aeiou theLORD's  \n\t.,'0123456789éß中文😀\u00a0-<|>"):
    generator = random.Random(20261122)
    return ["".join(generator.choice(alphabet) for _ in range(generator.randrange(1, 60))) for _ in range(count)]


def main():
    os.makedirs(FOLDER, exist_ok=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    gpt2 = train(byte_level, ["<|endoftext|>"], 700, False)
    split = pre_tokenizers.Split(Regex(LLAMA_3), behavior="isolated")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    llama = train(pre_tokenizers.Sequence([split, plain]), ["<|begin_of_text|>", "<|end_of_text|>"], 900, True)
    # A token that no merge makes: found because the tokenizer looks for whole pieces first.
    described = json.loads(llama.to_str())
    described["model"]["vocab"]["qwrtp"] = llama.get_vocab_size()
    llama = Tokenizer.from_str(json.dumps(described))
    begin = llama.token_to_id("<|begin_of_text|>")
    llama.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)]
    )
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    third = train(digits, ["<|endoftext|>", "<|end"], 600, False)
    split = pre_tokenizers.Split(Regex(QWEN), behavior="isolated")
    qwen = train(pre_tokenizers.Sequence([split, plain]), ["<|endoftext|>", "<|im_start|>"], 500, False)
    qwen.normalizer = normalizers.NFC()
    spaced = train(pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True), ["<s>", "</s>"], 450, False)
    llama2 = train_characters(400, pre_tokenizers.Metaspace(SPACE, "never", True))
    llama2.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    # Merges across spaces, and over whole lines.
    across = train_characters(500, None)
    across.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "first", False)
    words = train_characters(300, None)
    words.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "always", True)
    whole = train(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), ["<|endoftext|>"], 500, False)
    marks = random_texts(30, "aeoun  \n\u0301\u0308\u0323\u0338>é\u1100\u1161\u11a8가\u3099か\u2126<")
    spaces = SPACES + random_texts(30, "aeiou theLORD   \n.\u2581é中<s>")
    cases = []
    for name, tokenizer, others in (
        ("gpt2", gpt2, []),
        ("llama3", llama, []),
        ("digits", third, []),
        ("qwen", qwen, COMPOSING + marks),
        ("spaced", spaced, SPACES),
        ("llama2", llama2, spaces),
        ("across", across, spaces),
        ("words", words, spaces),
        ("bytes", whole, []),
    ):
        with open(os.path.join(FOLDER, name + ".json"), "w", encoding="utf-8") as file:
            json.dump(json.loads(tokenizer.to_str()), file, ensure_ascii=False, separators=(",", ":"))
        for text in TEXTS + others + ["qwrtp", "qwrtp\nqwrtp qwrtps"] + random_texts(40 - len(others) // 2) + [" ".join(scripture()[100:104])]:
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            cases.append({"tokenizer": name, "text": text, "ids": ids})
    with open(os.path.join(FOLDER, "cases.json"), "w", encoding="utf-8") as file:
        file.write("[\n" + ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases) + "\n]\n")


main()
