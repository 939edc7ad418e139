/* Digests of what was trained on: sums that depend neither on order nor on the number of ranks. */
#ifndef LS_COMMON_DIGEST_H
#define LS_COMMON_DIGEST_H

#include <stdint.h>

/* A number mod 2^128. */
struct ls_digest {
    uint64_t low, high;
};

/* XXH3-128 over (source, shard, index, draw position `position`, count, tokens as int32 little-endian): one sequence of
 * `count` fed tokens. */
struct ls_digest ls_digest_sample(uint32_t source, uint32_t shard, uint64_t index, uint64_t position,
                                  const int32_t *tokens, int64_t count);
/* a + b mod 2^128. */
struct ls_digest ls_digest_add(struct ls_digest a, struct ls_digest b);
/* The chain over steps: XXH3-128 of (chain, step, digest). */
struct ls_digest ls_digest_chain(struct ls_digest chain, uint64_t step, struct ls_digest digest);
/* 32 hex digits, high half first, and back; parse returns 0, or -1 if `hex` is not exactly 32 hex digits. */
void ls_digest_format(struct ls_digest digest, char hex[33]);
int ls_digest_parse(const char *hex, struct ls_digest *digest);

#endif
