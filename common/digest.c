/* Sample digests and their chain: XXH3-128 over little-endian fields. */
#define XXH_STATIC_LINKING_ONLY /* for the layout of the streaming state, which then needs no allocation */
#include "common/digest.h"

#include <stdio.h>
#include <string.h>
#include <xxhash.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "digests are defined over little-endian fields");

static struct ls_digest from_hash(XXH128_hash_t hash) {
    return (struct ls_digest){.low = hash.low64, .high = hash.high64};
}

struct ls_digest ls_digest_sample(uint32_t source, uint32_t shard, uint64_t index, uint64_t position,
                                  const int32_t *tokens, int64_t count) {
    struct {
        uint32_t source, shard;
        uint64_t index, position, count;
    } identity = {source, shard, index, position, (uint64_t)count};
    XXH3_state_t state;
    XXH3_INITSTATE(&state);
    XXH3_128bits_reset(&state);
    XXH3_128bits_update(&state, &identity, sizeof identity);
    XXH3_128bits_update(&state, tokens, (size_t)count * sizeof *tokens);
    return from_hash(XXH3_128bits_digest(&state));
}

struct ls_digest ls_digest_add(struct ls_digest a, struct ls_digest b) {
    struct ls_digest sum = {.low = a.low + b.low, .high = a.high + b.high};
    sum.high += sum.low < a.low;
    return sum;
}

struct ls_digest ls_digest_chain(struct ls_digest chain, uint64_t step, struct ls_digest digest) {
    const uint64_t link[5] = {chain.low, chain.high, step, digest.low, digest.high};
    return from_hash(XXH3_128bits(link, sizeof link));
}

void ls_digest_format(struct ls_digest digest, char hex[33]) {
    snprintf(hex, 33, "%016llx%016llx", (unsigned long long)digest.high, (unsigned long long)digest.low);
}

static int hex_digit(char character) {
    if (character >= '0' && character <= '9') return character - '0';
    if (character >= 'a' && character <= 'f') return character - 'a' + 10;
    if (character >= 'A' && character <= 'F') return character - 'A' + 10;
    return -1;
}

int ls_digest_parse(const char *hex, struct ls_digest *digest) {
    uint64_t halves[2] = {0, 0};
    for (int i = 0; i < 32; i++) {
        int digit = hex_digit(hex[i]); /* a NUL is not a digit, so nothing past it is read */
        if (digit < 0) return -1;
        halves[i / 16] = halves[i / 16] << 4 | (uint64_t)digit;
    }
    if (hex[32]) return -1;
    *digest = (struct ls_digest){.low = halves[1], .high = halves[0]};
    return 0;
}
