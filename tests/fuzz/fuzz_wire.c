/* Any bytes as a message: refused, or within the limits, and then encoding it again gives a message with the same bytes
 * as a second round. covers: common/wire.c
 * common/wire_decode.c */
#include "common/wire.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool fact) {
    if (!fact) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static uint8_t first[LS_WIRE_BYTES_MAX], second[LS_WIRE_BYTES_MAX];
    static uint8_t tight[64];
    struct ls_message message, again;
    struct ls_error error = {0};
    size_t first_count, second_count;
    if (ls_wire_decode(data, size, &message, &error) != LS_OK) {
        require(error.code == LS_ERROR && error.text[0]);
        return 0;
    }
    require(message.kind < LS_MESSAGE_KINDS && ls_message_name(message.kind)[0]);
    if (message.protocol == LS_PROTOCOL) {
        if (message.kind == LS_MESSAGE_HELLO) require(message.hello.ranks_count <= LS_WIRE_RANKS_MAX);
        if (message.kind == LS_MESSAGE_PART) require(message.part.files_count <= LS_WIRE_FILES_MAX);
        require(ls_wire_encode(&message, first, sizeof first, &first_count, &error) == LS_OK);
        require(ls_wire_decode(first, first_count, &again, &error) == LS_OK);
        require(ls_wire_encode(&again, second, sizeof second, &second_count, &error) == LS_OK);
        require(first_count == second_count && memcmp(first, second, first_count) == 0);
        if (ls_wire_encode(&message, tight, sizeof tight, &second_count, &error) == LS_OK)
            require(second_count <= sizeof tight);
        ls_message_release(&again);
    }
    ls_message_release(&message);
    return 0;
}
