#!/usr/bin/env bash
# `lockstep data` from outside: what prepare writes, what inspect and verify say, and every command of docs/data.md.
source "$(dirname "$0")/lib.sh"
repository=$PWD
mkdir "$work/bin" "$work/here"
ln -s "$lockstep" "$work/bin/lockstep"
export PATH=$work/bin:$PATH
cd "$work/here" || exit 1

text() { lockstep data inspect "$1" --text; }
ids() { od -An -v -w"$1" -tu"$1" -j1024 "$2" | tr -d ' '; } # WIDTH SHARD: one a line
tokens() { ids 2 "$1"; }
documents() { lockstep data inspect "$1" | sed -n 's/.*there are \([0-9]*\)$/\1/p'; }
same() { # WHAT EXPECTED FOUND
    if [ "$2" = "$3" ]; then ok "$1"; else echo "expected: $2, found: $3" >"$work/same.log"; not_ok "$1" "$work/same.log"; fi
}
# nothing_left WHAT: no half-made dataset is beside the others.
nothing_left() { same "$1" "" "$(ls -A | grep preparing)"; }

# 200 lines of different lengths, 20 a chapter; the last without a line end.
book() { awk 'BEGIN { for (i = 0; i < 200; i++) { if (i % 20 == 0) printf "Chapter %d\n", i / 20 + 1; printf "line %d %*s%s", i, i % 17, "", i < 199 ? "\n" : "." } }'; }
book >book.txt
bytes=$(stat -c %s book.txt)

# --- what prepare writes
check "a text is prepared" lockstep data prepare book.txt -o book
same "train and validation together are the text" "$(md5sum <book.txt)" "$( (text book/train; text book/validation) | md5sum)"
validation=$(text book/validation | wc -c)
same "validation is the last 5 % of a single text or less, by a line at most" 1 $((validation <= bytes / 20 + 1 && validation >= bytes / 20 - 25))
same "validation of a single text begins with a line" 1 "$(text book/validation | head -n 1 | grep -cE '^(line|Chapter) ')"
same "and with the document token" "256 1" "$(tokens book/validation/validation-000.bin | head -n 1) $(tokens book/validation/validation-000.bin | grep -cx 256)"
same "the header is llm.c's: magic, version, count" "20240520 1 $((bytes - validation + 1))" "$(echo $(od -An -td4 -N12 book/train/train-000.bin))"
same "the file ends after its tokens" $((1024 + 2 * (bytes - validation + 1))) "$(stat -c %s book/train/train-000.bin)"
same "tokens are the document token and bytes" "$(echo 256; printf 'Chapter 1\nline 0' | od -An -v -w1 -tu1 | tr -d ' ')" "$(tokens book/train/train-000.bin | head -n 17)"
same "the samples of T tokens are floor((tokens - 1) / T)" "$(((bytes - validation) / 64))" "$(lockstep data inspect book/train -T 64 | sed -n 's/^ *samples *\([0-9]*\) .*/\1/p')"

gzip -k book.txt
cp book.txt.gz unnamed
check "gzip is recognised by its bytes, not by its name" lockstep data prepare unnamed -o packed
check "two preparations of the same text have the same bytes" diff -r book packed
zstd -q book.txt -o unnamed-2
check "and so is zstd" lockstep data prepare unnamed-2 -o packed-2
check "with the same bytes" diff -r book packed-2
(head -n 7 book.txt | zstd -q; printf '\120\052\115\030\003\0\0\0abc'; tail -n +8 book.txt | zstd -q -19) >frames
check "several frames of zstd, and one to be skipped, are one text" lockstep data prepare frames -o packed-3
check "with the same bytes too" diff -r book packed-3
check "pieces of any size make the same tokens" lockstep data prepare book.txt --shard-tokens 101 -o pieces
same "shards hold 101 tokens but for the last" "101" "$(for file in pieces/train/*.bin; do echo $((($(stat -c %s "$file") - 1024) / 2)); done | head -n -1 | sort -u)"
same "and hold the same tokens one after the other" "$(tokens book/train/train-000.bin | md5sum)" "$(for file in pieces/train/*.bin; do tokens "$file"; done | md5sum)"
same "inspect shows the first words" 1 "$(lockstep data inspect book/train | grep -c 'begins *Chapter 1\\nline 0')"
printf 'caf\303\251 \033[31m\302\233 \377 \340\202\233 \355\240\200 \364\220\200\200 \346\227' >strange.txt
check "a text of any bytes is prepared" lockstep data prepare strange.txt --validation 0 -o strange
same "inspect shows its characters and nothing a terminal obeys" "$(printf 'caf\303\251 .[31m.. . ... ... .... ..')" "$(lockstep data inspect strange/train | sed -n 's/^ *begins *//p')"

# --- documents
check "documents start at each match" lockstep data prepare book.txt --split-on '^Chapter' --validation 0.2 -o chapters
same "8 of 10 chapters are for training" 8 "$(documents chapters/train)"
same "the last 2 are for validation" "$(sed -n '/^Chapter 9/,$p' book.txt | md5sum)" "$(text chapters/validation | md5sum)"
same "each begins with the document token" 8 "$(tokens chapters/train/train-000.bin | grep -cx 256)"
check "what stands before the first match is a document" lockstep data prepare book.txt --split-on '^line 5 ' --validation 0.5 -o two
same "of two documents one is for validation" "1 1" "$(documents two/train) $(documents two/validation)"
check "a pattern that matches nothing but a place works" lockstep data prepare book.txt --split-on '(?=^Chapter)' --validation 0.2 -o places
check "and finds the same documents" diff -r chapters places
check "a pattern that matches everywhere makes a document of each byte" lockstep data prepare book.txt --split-on '' --validation 0 -o letters
same "as many as there are bytes" "$bytes" "$(documents letters/train)"
same "--validation 0 makes no validation" "train" "$(ls letters)"

printf '%s\n' '{"text": "one\n\u00e9\u0000", "id": 1}' '' '   ' '{"id": 2, "text": "two"}' '{"text": ""}' '{"text": "three"}' | sed 's/$/\r/' >lines.jsonl
printf '{"text": "four"}' >>lines.jsonl
check "JSONL is prepared" lockstep data prepare lines.jsonl -o lines
same "a line is a document, empty ones are left out" "3 1" "$(documents lines/train) $(documents lines/validation)"
same "with its escapes resolved" "$(printf 'one\n\303\251\0twothree' | md5sum)" "$(text lines/train | md5sum)"
same "the last line needs no line end" four "$(text lines/validation)"
cp lines.jsonl lines.data
printf '\357\273\277' | cat - lines.jsonl >marked.jsonl
check "JSONL with a byte order mark is prepared" lockstep data prepare marked.jsonl -o marked
check "as without" diff -r lines/train marked/train
check "--format jsonl says what the name does not" lockstep data prepare --format jsonl lines.data -o lines-2
check "and gives the same" diff -r lines lines-2
for name in lines.json lines.ndjson lines.json.gz lines.jsonl.zst; do
    case $name in *.gz) gzip -c lines.jsonl ;; *.zst) zstd -qc lines.jsonl ;; *) cat lines.jsonl ;; esac >"$name"
    check "$name is JSONL by its name" lockstep data prepare "$name" -o "of-$name"
    check "and gives the same" diff -r lines "of-$name"
done
sed 's/"text"/"content"/' lines.jsonl >content.jsonl
check "--json-key names the member that is the document" lockstep data prepare content.jsonl --json-key content -o content
check "and gives the same" diff -r lines content
expect 3 'content.jsonl, line 1: no member "text" .*--json-key' "without it the line is refused" lockstep data prepare content.jsonl -o x
check "--format plain takes a text that only looks like JSON" lockstep data prepare lines.json --format plain --validation 0 -o looks
same "as it is" "$(md5sum <lines.jsonl)" "$(text looks/train | md5sum)"
awk 'BEGIN { printf "{\"text\": \""; for (i = 0; i < 400000; i++) printf "%d ", i; print "\"}"; print "{\"text\": \"end\"}" }' | gzip >long.jsonl.gz
check "a line of megabytes is one document" lockstep data prepare long.jsonl.gz -o long
same "whole" "$(seq -s ' ' 0 399999 | tr '\n' ' ' | md5sum)" "$(text long/train | md5sum)"
gzip -dc long.jsonl.gz | zstd -q >long.jsonl.zst
check "and from zstd" lockstep data prepare long.jsonl.zst -o long-2
check "the same" diff -r long long-2
check "several inputs are taken in their order" lockstep data prepare lines.jsonl book.txt -o several
same "each a document or more" "$(md5sum <book.txt)" "$(text several/validation | md5sum)"
printf 'no line end in here' >line.txt
check "a text without line ends is cut where 5 % are left" lockstep data prepare line.txt --validation 0.21 -o line
same "at the byte" here "$(text line/validation)"
printf 'first line\nand a long second line without an end' >second.txt
check "a text whose last line is long is cut before it" lockstep data prepare second.txt -o second
same "so that validation is a line" "and a long second line without an end" "$(text second/validation)"
seq 100000 >numbers.txt
check "a text read in several pieces is prepared" lockstep data prepare numbers.txt -o numbers
same "its parts begin with the document token, which they have once" "256 1 256 1" "$(echo $(for part in train validation; do tokens numbers/$part/$part-000.bin | head -n 1; tokens numbers/$part/$part-000.bin | grep -cx 256; done))"
same "they are the text" "$(md5sum <numbers.txt)" "$( (text numbers/train; text numbers/validation) | md5sum)"
same "cut at a line end" 1 "$(text numbers/validation | head -n 1 | grep -c '^9[45][0-9][0-9][0-9]$')"
for i in 0 1 2 3 4 5 6 7 8 9; do echo "line $i 78"; done >even.txt
check "a text whose part for validation begins with a line" lockstep data prepare even.txt --validation 0.2 -o even
same "is cut right there" "$(tail -n 2 even.txt)" "$(text even/validation)"

printf '%s\n' '{"id": 18446744073709551615, "text": "one"}' '{"text": "two", "n": -99999999999999999999999}' >hashes.jsonl
check "numbers beyond 64 bits beside the text are taken" lockstep data prepare hashes.jsonl -o hashes
same "with their texts" "onetwo" "$(text hashes/train)$(text hashes/validation)"
printf 'BZhang, PAR and PK are letters' >letters.txt
check "a text may begin with the letters of bzip2" lockstep data prepare letters.txt --validation 0 -o bzh

# --- what prepare refuses
expect 2 'exists already' "an existing folder is not overwritten" lockstep data prepare line.txt -o book
check "and left as it was" diff -r book packed
expect 2 'exists already' "nor one written with a slash" lockstep data prepare line.txt -o book/
ln -s nowhere dangling
expect 2 'exists already' "nor a link to nothing" lockstep data prepare line.txt -o dangling
expect 2 'name of a folder' "the output needs a name" lockstep data prepare line.txt -o absent/..
expect 2 'at least one file' "an input is needed" lockstep data prepare -o x
expect 2 '-o DIR' "an output is needed" lockstep data prepare line.txt
expect 2 "--tokenizer gpt2: cannot open gpt2.*It is 'byte'" "a tokenizer that does not exist is refused" lockstep data prepare line.txt -o x --tokenizer gpt2
expect 2 "is for a --tokenizer" "bytes have their own document token" lockstep data prepare line.txt -o x --document-token '<s>'
expect 2 'fraction' "a validation of 1 is refused" lockstep data prepare line.txt -o x --validation 1
expect 2 'fraction' "a validation that is no number is refused" lockstep data prepare line.txt -o x --validation nan
expect 2 'whole number' "shards of no tokens are refused" lockstep data prepare line.txt -o x --shard-tokens 0
expect 2 'at character 1' "a bad pattern is refused with its place" lockstep data prepare line.txt -o x --split-on '('
expect 2 'plain or jsonl' "an unknown format is refused" lockstep data prepare line.txt -o x --format xml
expect 2 'are its lines' "--split-on is refused for JSONL" lockstep data prepare lines.jsonl -o x --split-on x
expect 3 'No such file' "a missing input is named" lockstep data prepare absent.txt -o x
expect 3 'book is a folder.*book/\*\.txt' "a folder is no input, its files are" lockstep data prepare book -o x
mkfifo pipe
expect 3 'not a regular file' "a pipe is no input" lockstep data prepare pipe -o x
: >empty.txt
expect 3 'no text' "an empty text is refused" lockstep data prepare empty.txt -o x
while read -r name begin words; do
    printf "$begin and more bytes that are no text" >"$name"
    expect 3 "data: $name is $words, no text. " "$words is no text" lockstep data prepare "$name" -o x
done <<'KINDS'
a.txt.xz \375\067zXZ\000 packed by xz
a.txt.bz2 BZh91AY\046SY packed by bzip2
a.lz4 \004\042M\030 packed by lz4
a.zip PK\003\004 a zip archive
a.parquet PAR1\025\004 a Parquet file
a.arrow ARROW1\000\000 an Arrow file
KINDS
for begin in PAR1S ARROW1 BZh9; do
    echo "$begin is how a text may begin" >begin.txt
    check "a text may begin with $begin" lockstep data prepare begin.txt -o "begin-$begin"
done
printf a >a.txt
expect 3 'too few to split' "a text of one byte cannot be split" lockstep data prepare a.txt -o x
expect 3 'holds tokens already' "token files are not text" lockstep data prepare book/train/train-000.bin -o x
head -c 300 book.txt.gz >cut.gz
expect 3 'truncated' "a truncated gzip file is refused" lockstep data prepare cut.gz -o x
(head -c 300 book.txt.gz; printf 'xxxxxxxxxxxx'; tail -c +313 book.txt.gz) >damaged.gz
expect 3 'damaged.gz' "a damaged gzip file is refused" lockstep data prepare damaged.gz -o x
head -c 300 unnamed-2 >cut.zst
expect 3 'cut.zst ends in the middle of its zstd stream' "a truncated zstd file is refused" lockstep data prepare cut.zst -o x
(zstd -qc book.txt; zstd -qc book.txt | head -c 10) >cut-2.zst
expect 3 'cut-2.zst ends in the middle' "so is one that ends in its second frame" lockstep data prepare cut-2.zst -o x
(head -c 300 unnamed-2; printf 'xxxxxxxxxxxx'; tail -c +313 unnamed-2) >damaged.zst
expect 3 'cannot read damaged.zst: ' "a damaged zstd file is refused" lockstep data prepare damaged.zst -o x
(zstd -qc book.txt; echo more) >tail.zst
expect 3 'cannot read tail.zst: ' "and one with something else behind it" lockstep data prepare tail.zst -o x
zstd -q --long=28 <book.txt >wide.zst
expect 3 "wide.zst .*zstd -d --long=31" "a window that takes more memory than is given is refused" lockstep data prepare wide.zst -o x
printf '{"text": "a"}\n\n{"text": 3}\n' >number.jsonl
expect 3 'line 3: no member "text"' "a line without text is named" lockstep data prepare number.jsonl -o x
printf '{"text": "a"}\n{"text": "b"\n' >open.jsonl
expect 3 'line 2: ' "a line that is no JSON is named" lockstep data prepare open.jsonl -o x
same "what fails leaves nothing" "" "$(ls -d x 2>/dev/null)"

cat >full-disk <<'END'
ulimit -f 3
trap '' XFSZ
exec lockstep data prepare "$@"
END
expect 3 'cannot write .*Make room' "a full disk is told" bash full-disk book.txt -o full
nothing_left "and what was written is removed"
sed -i /trap/d full-disk
expect 3 'cannot write .*Make room' "a limit on the size of files is told, whose signal would end it" bash full-disk book.txt -o full
nothing_left "and what was written is removed too"
if mkdir small && unshare -rm true 2>/dev/null; then
    cat >small-disk <<'END'
mount -t tmpfs -o size=64k none small && lockstep data prepare "$@" -o small/x
status=$?
ls -A small
exit $status
END
    head -c 100000 /dev/zero >zeros
    expect 3 'disk of small has 0 MB left' "a disk that is too small is told before anything is written" unshare -rm bash small-disk zeros
else
    skip "a disk that is too small is told before anything is written" "user namespaces are not allowed here"
fi
awk 'BEGIN { for (i = 0; i < 300000; i++) print "some text to be written in very many shards" }' >slow.txt
for signal in TERM HUP; do
    lockstep data prepare slow.txt --shard-tokens 300 -o slow >slow.log 2>&1 &
    preparation=$!
    until ls -d .slow.preparing-* >/dev/null 2>&1 || ! kill -0 $preparation 2>/dev/null; do sleep 0.01; done
    kill -$signal $preparation
    wait $preparation
    same "SIG$signal ends it with 130" 130 $?
    same "and leaves no dataset" "" "$(ls -d slow 2>/dev/null)"
    nothing_left "nor parts of one"
done

# --- what verify finds
check "a good dataset verifies" lockstep data verify pieces
shards=$(ls pieces/train/*.bin pieces/validation/*.bin | wc -l)
same "every shard has its line" "$shards" "$(lockstep data verify pieces | grep -c '^ok ')"
cp -r pieces flipped
printf 'X' | dd of=flipped/train/train-003.bin bs=1 seek=1100 conv=notrunc status=none
expect 3 'train-003.bin have the hash' "a changed byte is found and the shard named" lockstep data verify flipped
truncate -s -1 flipped/train/train-005.bin
expect 3 'BAD .*train-005.bin: .*truncated copy' "a truncated shard is found" lockstep data verify flipped
same "one bad shard does not hide another" 2 "$(lockstep data verify flipped 2>/dev/null | grep -c '^BAD')"
same "the good ones are told too" $((shards - 2)) "$(lockstep data verify flipped 2>/dev/null | grep -c '^ok ')"
expect 3 'exit 3 .data.: 2 of .* shards bad: .*train-003.bin' "the last line names the first bad shard" lockstep data verify flipped
expect 3 'train-005.bin' "inspect refuses a truncated shard" lockstep data inspect flipped
rm flipped/train/train-005.bin
expect 3 'train-005.bin: No such file' "a missing shard is found" lockstep data verify flipped
sed -i 's/train-003.bin/..\/train-003.bin/' flipped/train/dataset.json
expect 3 'not one component' "a hostile name is not opened" lockstep data verify flipped
expect 3 'No such file' "a missing dataset is told" lockstep data verify absent
expect 3 'no dataset.json and no' "a folder without shards is told" lockstep data verify small

mkdir foreign
cp book/train/train-000.bin foreign/a.bin
check "llm.c files without dataset.json verify" lockstep data verify foreign
check "a single one does too" lockstep data verify foreign/a.bin
printf '\377\377' | dd of=foreign/a.bin bs=1 seek=1124 conv=notrunc status=none
expect 3 'token 50 of foreign/a.bin is 65535' "an id outside the vocabulary is found with its place" lockstep data verify foreign
expect 3 'token 50 of foreign/a.bin is 65535' "in a single file too" lockstep data verify foreign/a.bin
expect 2 'is not known' "an unknown subcommand is refused" lockstep data inspekt
expect 2 'one dataset too many' "inspect takes one dataset" lockstep data inspect book book
expect 2 'neither byte tokens nor those of a tokenizer' "text comes back from tokens that are known" lockstep data inspect foreign --text
expect 0 'synthetic' "synthetic data can be looked at" lockstep data inspect synthetic:1000

# --- tokens of a tokenizer.json
tokenizers=$repository/tests/reference/tokenizer
check "a text is prepared with a tokenizer" lockstep data prepare book.txt --tokenizer $tokenizers/gpt2.json -o words
same "and comes back" "$(md5sum <book.txt)" "$( (text words/train; text words/validation) | md5sum)"
same "in fewer tokens than bytes, behind the document token" "0 1 1" "$(tokens words/train/train-000.bin | head -n 1) $(tokens words/train/train-000.bin | grep -cx 0) $(($(tokens words/train/train-000.bin | wc -l) < bytes * 9 / 10))"
check "the tokenizer is beside them" cmp $tokenizers/gpt2.json words/train/tokenizer.json
same "inspect shows the first words" 1 "$(lockstep data inspect words/train | grep -c 'begins *Chapter 1\\nline 0')"
same "and names tokenizer and vocabulary" "words/validation/tokenizer.json, 700 ids" "$(lockstep data inspect words/validation | sed -n 's/^ *tokenizer *//p')"
check "verify takes its vocabulary" lockstep data verify words
check "small shards hold the same tokens" lockstep data prepare book.txt --tokenizer $tokenizers/gpt2.json --shard-tokens 101 -o word-pieces
same "one after the other" "$(tokens words/train/train-000.bin | md5sum)" "$(for file in word-pieces/train/*.bin; do tokens "$file"; done | md5sum)"
# More than the 1 MiB of text that is made tokens at a time.
for i in $(seq 300); do cat book.txt; done >library.txt
check "a long text is prepared" lockstep data prepare library.txt --tokenizer $tokenizers/llama3.json --validation 0 -o library
same "and comes back" "$(md5sum <library.txt)" "$(text library/train | md5sum)"
mkdir model && sed 's/"added_tokens":\[/"added_tokens":[{"id":70000,"content":"<extra>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},/' $tokenizers/gpt2.json >model/tokenizer.json
printf 'one<extra>two' >extra.txt
check "a folder with a tokenizer will do" lockstep data prepare extra.txt --tokenizer model --document-token '<extra>' --validation 0 -o wide
same "65,537 ids and more are of 4 bytes, as llm.c has them" "20240801 7 70000 70000" "$(echo $(od -An -td4 -N8 wide/train/train-000.bin) $(ids 4 wide/train/train-000.bin | grep -x 70000))"
same "special tokens in a text are no text" "onetwo" "$(text wide/train)"
# Bytes as a fallback, a space in front of each document, and text that begins and ends with some.
printf '  one\n\xff two \xe4\xb8\xad  ' >spaced.txt
cat spaced.txt spaced.txt spaced.txt >spaced-thrice.txt
check "text is prepared for a Llama 2" lockstep data prepare spaced.txt --tokenizer $tokenizers/llama2.json --validation 0 -o spaced
same "and comes back" "$(md5sum <spaced.txt)" "$(text spaced/train | md5sum)"
same "behind its document token" "1" "$(tokens spaced/train/train-000.bin | head -n 1)"
check "documents, one to a line" lockstep data prepare spaced-thrice.txt --split-on '^  ' --tokenizer $tokenizers/llama2.json --shard-tokens 7 --validation 0 -o spaced-lines
same "come back as well" "$(md5sum <spaced-thrice.txt)" "$(text spaced-lines/train | md5sum)"
printf 'e\314\201' >composed.txt
check "text is prepared for a Qwen" lockstep data prepare composed.txt --tokenizer $tokenizers/qwen.json --validation 0 -o composed
same "its characters composed" "$(printf '\303\251')" "$(text composed/train)"
check "JSONL has a document token for each line" lockstep data prepare lines.jsonl --tokenizer $tokenizers/digits.json --validation 0 -o word-lines
same "as often as there are documents" "$(documents word-lines/train)" "$(tokens word-lines/train/train-000.bin | grep -cx 0)"
expect 2 "has no token '<s>'" "a document token it does not have is refused" lockstep data prepare book.txt --tokenizer $tokenizers/gpt2.json --document-token '<s>' -o x
sed 's/<|endoftext|>/<other>/g' $tokenizers/gpt2.json >other.json
expect 2 'none of the tokens that usually begin a document' "one has to be named where none is usual" lockstep data prepare book.txt --tokenizer other.json -o x
sed 's/"normalizer":null/"normalizer":{"type":"NFKC"}/' $tokenizers/gpt2.json >other.json
expect 3 "other.json changes text by the normalizer 'NFKC' first" "a tokenizer that would give other ids is refused" lockstep data prepare book.txt --tokenizer other.json -o x
nothing_left "no half-made dataset is left"
cat >words.yaml <<'END'
model: {model_type: gpt2, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}
data: {train: [{path: words/train}], sequence_length: 16}
train: {steps: 2, global_batch_size: 2, micro_batch_size: 2}
END
mkdir folder && cp $tokenizers/gpt2.json folder/tokenizer.json
echo '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}' >folder/tokenizer_config.json
check "a tokenizer's configuration is copied" lockstep data prepare book.txt --tokenizer folder/tokenizer.json -o configured
check "with it" cmp folder/tokenizer_config.json configured/validation/tokenizer_config.json
check "and taken into checkpoints" lockstep run words.yaml --set 'data.train=[{path: configured/train}]' --run-dir configured-run
check "as it is" cmp folder/tokenizer_config.json configured-run/final/tokenizer_config.json
cp -r words harmed && printf '\1' | dd of=harmed/train/train-000.bin bs=1 seek=1100 conv=notrunc status=none
lockstep coordinator words.yaml --set 'data.train=[{path: harmed/train}]' --run-dir harmed-run >harmed.out 2>&1 &
for i in $(seq 600); do grep -q data_damaged harmed-run/metrics.jsonl 2>/dev/null && break; sleep 0.1; done
kill -INT $!; wait $!
same "a run tells of a file that dataset.json does not describe" "1 1" "$(grep -c '"data_damaged".*harmed/train/train-000.bin.*dataset.json says' harmed-run/metrics.jsonl) $(grep -c 'train-000.bin' harmed-run/data.jsonl)"
lockstep run words.yaml --set 'data.train=[{path: harmed/train}]' --set data.audit=false --run-dir trusted-run >/dev/null 2>&1
check "but not where data.audit is false" test ! -e trusted-run/data.jsonl -a -e trusted-run/final
check "a run trains on them" lockstep run words.yaml --run-dir words-run
check "where there was none it names the document token" grep -q '"eos_token": "<|endoftext|>"' words-run/final/tokenizer_config.json
check "its checkpoint has the tokenizer" cmp $tokenizers/gpt2.json words-run/final/tokenizer.json
same "blame shows the words" 1 "$(($(lockstep blame words-run --step 1 | grep -c '  begins .*line') >= 1))"
lockstep generate words-run/final --prompt 'line 7 of <|endoftext|>it' --temperature 0 --max-tokens 5 >continued.txt
same "generate reads and writes text by it" "line 7 of it" "$(head -c 12 continued.txt)"
lockstep generate words-run/final --prompt '' --max-tokens 3 >/dev/null
check "an empty prompt begins a document" lockstep generate words-run/final --prompt '' --max-tokens 3

# --- the commands of docs/data.md, in a folder that holds what they name
mkdir "$work/docs" && cd "$work/docs" || exit 1
book >book.txt
cp "$work/here/lines.jsonl" more-articles.jsonl
zstd -qc "$work/here/content.jsonl" >export.json.zst
gzip <more-articles.jsonl >articles.jsonl.gz
for i in 1 2 3 4 5; do printf 'From somebody@example.org\n%s\n\n' "$(head -c 900 book.txt)"; done >mail.mbox
mkdir -p fineweb10B openwebtext models/gpt2
cp $tokenizers/gpt2.json models/gpt2/tokenizer.json
for i in 0 1; do cp "$work/here/book/train/train-000.bin" fineweb10B/fineweb_train_00000$i.bin; done
tail -c +1025 "$work/here/book/train/train-000.bin" >openwebtext/train.bin
commands=0
while IFS= read -r command; do
    commands=$((commands + 1))
    check "docs/data.md: $command" bash -c "$command"
done < <(awk '/^```sh$/ { shell = 1; next } /^```/ { shell = 0 } shell' "$repository/docs/data.md")
same "docs/data.md has commands" 1 $((commands >= 10))
awk '/^```yaml$/ { yaml = 1; next } /^```/ { yaml = 0 } yaml' "$repository/docs/data.md" >mixture.yaml
cat >>mixture.yaml <<'END'
model: {model_type: gpt2, hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 1}
train: {steps: 1, global_batch_size: 1, micro_batch_size: 1}
END
check "docs/data.md: its configuration is one" lockstep config mixture.yaml
for path in data/book/train 'fineweb10B/fineweb_train_*.bin'; do check "docs/data.md: $path is a dataset" lockstep data inspect "$path"; done
