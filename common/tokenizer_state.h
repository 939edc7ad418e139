/* What a tokenizer is made of: for tokenizer.c, which reads it, and encoding.c, which uses it. */
#ifndef LS_COMMON_TOKENIZER_STATE_H
#define LS_COMMON_TOKENIZER_STATE_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include "common/bpe.h"
#include "common/normalizer.h"
#include "common/tokenizer.h"

#include <pcre2.h>

enum { LS_TOKENIZER_CUTS_MAX = 8, LS_TOKENIZER_PREFIX_MAX = 8 };

/* Cuts a text into the matches of a pattern and what lies between them. */
struct ls_tokenizer_cut {
    pcre2_code *code; /* NULL: wherever no merge joins what is left and right */
    pcre2_match_data *match;
};

struct ls_tokenizer {
    struct ls_vocabulary *vocabulary;
    struct ls_normalizer normalizer;
    struct ls_tokenizer_cut cuts[LS_TOKENIZER_CUTS_MAX]; /* each cuts the pieces of the one before */
    int cut_count;
    struct ls_bpe *bpe;
    int32_t *added; /* ids of added tokens, the longest first */
    size_t added_count, added_longest;
    bool added_begins[256];
    int32_t prefix[LS_TOKENIZER_PREFIX_MAX];
    size_t prefix_count;
};

#endif
