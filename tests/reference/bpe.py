"""Makes tests/reference/bpe/: small tokenizers of the kinds of GPT-2 and Llama 3, trained by Hugging Face tokenizers, and
what they make of texts: cases.json, [{"tokenizer", "text", "ids"}]. Usage: bpe.py (tokenizers 0.23.3; the text is that of
Debian's package bible-kjv)."""

import json
import os
import random
import subprocess

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bpe")
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
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
    "<|end <|en <|endof <|endoftext| <|endoftext|> <|end<|end",
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


def random_texts(count):
    generator = random.Random(20261122)
    alphabet = "aeiou theLORD's  \n\t.,'0123456789éß中文😀\u00a0-<|>"
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
    cases = []
    for name, tokenizer in (("gpt2", gpt2), ("llama3", llama), ("digits", third)):
        with open(os.path.join(FOLDER, name + ".json"), "w", encoding="utf-8") as file:
            json.dump(json.loads(tokenizer.to_str()), file, ensure_ascii=False, separators=(",", ":"))
        for text in TEXTS + ["qwrtp", "qwrtp\nqwrtp qwrtps"] + random_texts(40) + [" ".join(scripture()[100:104])]:
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            cases.append({"tokenizer": name, "text": text, "ids": ids})
    with open(os.path.join(FOLDER, "cases.json"), "w", encoding="utf-8") as file:
        file.write("[\n" + ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases) + "\n]\n")


main()
