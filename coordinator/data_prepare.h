/* `lockstep data prepare`: text to the folders DIR/train and DIR/validation of tokens. */
#ifndef LS_COORDINATOR_DATA_PREPARE_H
#define LS_COORDINATOR_DATA_PREPARE_H

#include "common/status.h"
#include "coordinator/text_input.h"

#include <stdint.h>

struct ls_data_prepare_options {
    const char *const *inputs; /* files of text, read twice, in this order */
    int input_count;
    const char *output; /* DIR: must not exist */
    enum ls_text_format format;
    const char *json_key; /* the member of a line of JSONL that is its document; NULL: "text" */
    const char *split_on; /* NULL: a plain text is one document */
    /* NULL: tokens are bytes; else a tokenizer.json, or a folder that has one. */
    const char *tokenizer;
    const char *document_token; /* the text of its token that begins a document; NULL: one of the usual ones */
    double
        validation; /* the last part of the documents, or of the text of a single one: 0 <= validation < 1; 0: none */
    int64_t shard_tokens;
};

/* Prepares a dataset and prints what it holds on standard output. It is built in a hidden folder beside `output`, which
 * gets its name when all has reached the disk; on any error, a signal included, that folder is removed. Errors:
 * LS_USAGE (output exists, bad pattern, no token that begins documents), LS_DATA (unreadable or changing input, no
 * text, too little to split, full disk), LS_STOPPED. */
enum ls_code ls_data_prepare(const struct ls_data_prepare_options *options, struct ls_error *error);

#endif
