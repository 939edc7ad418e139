/* Datasets: token shards on disk, their samples and document boundaries. Format and rules: docs/design.md, "Samples".
 */
#ifndef LS_COMMON_DATASET_H
#define LS_COMMON_DATASET_H

#include "common/config.h"
#include "common/digest.h"
#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ls_dataset;

/* A data shard as found when the dataset was opened. */
struct ls_shard_info {
    char name[256];
    const char *path; /* the dataset's; of synthetic tokens what the source says */
    char xxh3[33];    /* of the file's bytes by dataset.json; "": not given */
    int64_t tokens;   /* by the header, checked against the size */
    int64_t samples;  /* floor((tokens - 1) / T), 0 if there are none */
    int64_t tail;     /* tokens after the last sample's last target */
    int64_t bytes, mtime_nanoseconds;
    int token_bytes; /* 2 or 4 */
};

/* Opens `source` for samples of `sequence_length` = T >= 1 tokens. Its path is one of
 *
 *   - a folder: the shards its dataset.json names, in that order; without one, its *.bin files in name order;
 *   - a file;
 *   - a pattern: a last component with '*', '?' or '[', matched against the names in its folder ("data/train_*.bin");
 *   - "synthetic:TOKENS": byte tokens from a counter-based generator keyed by the position, the same everywhere.
 *
 * Files have an llm.c header (both magics) or are headerless uint16 with `dtype`. The document token is the source's
 * document_token_id if given, else dataset.json's, else the one of the magic (50256 or 128000, at the start).
 *
 * Errors are LS_DATA, LS_MEMORY, and LS_USAGE for a dtype that is unknown or cannot apply. A dtype or document token
 * that the files contradict is refused; empty datasets and ones shorter than a sample are refused with their size.
 *
 * The caller closes it; files stay open (descriptors), reads are pread and safe from several threads. */
enum ls_code ls_dataset_open(const struct ls_config_source *source, int64_t sequence_length,
                             struct ls_dataset **dataset, struct ls_error *error);
void ls_dataset_close(struct ls_dataset *dataset);

int64_t ls_dataset_samples(const struct ls_dataset *dataset);
int64_t ls_dataset_tokens(const struct ls_dataset *dataset);
int64_t ls_dataset_vocab_size(const struct ls_dataset *dataset);     /* 257 for bytes, 50257, 128256; 0: unknown */
int64_t ls_dataset_document_token(const struct ls_dataset *dataset); /* -1: none known */
bool ls_dataset_document_token_at_end(const struct ls_dataset *dataset);
int64_t ls_dataset_documents(const struct ls_dataset *dataset);  /* by dataset.json; 0: unknown */
int64_t ls_dataset_text_bytes(const struct ls_dataset *dataset); /* by dataset.json; 0: unknown */
/* Bytes of text behind one token on average, from dataset.json; 0: unknown. For bits per byte. */
double ls_dataset_bytes_per_token(const struct ls_dataset *dataset);
/* "byte", "gpt2", "llama3", a path, or "" when unknown. */
const char *ls_dataset_tokenizer(const struct ls_dataset *dataset);
size_t ls_dataset_shard_count(const struct ls_dataset *dataset);
const struct ls_shard_info *ls_dataset_shard(const struct ls_dataset *dataset, size_t shard);
/* XXH3-128 over the shards' names, sizes and kinds, the vocabulary, the document token and T, as 32 hex digits: what
 * every rank must agree on. Not over modification times or folders, which differ between copies. */
void ls_dataset_digest(const struct ls_dataset *dataset, char digest[33]);
/* Over the same without T and with the hashes in dataset.json, where it has them: which dataset it is, however it is
 * cut into samples. No token is read. */
void ls_dataset_content_digest(const struct ls_dataset *dataset, char digest[33]);

/* Where sample `sample` of the dataset lives. */
void ls_dataset_locate(const struct ls_dataset *dataset, int64_t sample, uint32_t *shard, uint64_t *index);

/* Reads sample `sample`: inputs[T], targets[T] (-1 where a target carries no loss) and document_start[T] (for each
 * position the first position of its document inside the sample: it attends to [document_start[t], t]). A document
 * token at the start belongs to the document it opens, so the position before it has no target; one at the end belongs
 * to the document it closes, so its own position has no target and it is itself a target. With `document_mask` false
 * every start is 0; targets in another document carry no loss either way. Token ids outside [0, vocab) are LS_DATA,
 * naming shard and offset; a file that became shorter is LS_DATA too. */
enum ls_code ls_dataset_read(const struct ls_dataset *dataset, int64_t sample, int64_t vocab, bool document_mask,
                             int32_t *inputs, int32_t *targets, int32_t *document_start, struct ls_error *error);

/* Reads tokens[count], count >= 1, of a shard from its token `first` on, tail tokens included; first + count is at most
 * the shard's tokens. Ids are not checked against a vocabulary. Errors are LS_DATA. */
enum ls_code ls_dataset_read_tokens(const struct ls_dataset *dataset, size_t shard, int64_t first, int64_t count,
                                    int32_t *tokens, struct ls_error *error);

/* Reads all of a shard that is a file, as ls_token_shard_scan() does. */
enum ls_code ls_dataset_scan(const struct ls_dataset *dataset, size_t shard, int64_t vocab, struct ls_digest *hash,
                             bool (*progress)(void *context, int64_t bytes), void *context, struct ls_error *error);

#endif
