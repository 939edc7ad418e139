/* UTF-8: no character longer than need be, no surrogates, nothing beyond U+10FFFF. */
#include "common/utf8.h"

size_t ls_utf8_character(const char *text, size_t count, bool *short_of) {
    const unsigned char *bytes = (const unsigned char *)text;
    const unsigned lead = bytes[0];
    const size_t length = lead < 0x80                   ? 1
                          : lead >= 0xc2 && lead < 0xe0 ? 2
                          : lead >= 0xe0 && lead < 0xf0 ? 3
                          : lead >= 0xf0 && lead < 0xf5 ? 4
                                                        : 0;
    *short_of = false;
    for (size_t i = 1; i < length; i++) {
        if (i == count) {
            *short_of = true;
            return 0;
        }
        const unsigned low = i > 1          ? 0x80
                             : lead == 0xe0 ? 0xa0
                             : lead == 0xf0 ? 0x90
                                            : 0x80,
                       high = i > 1          ? 0xbf
                              : lead == 0xed ? 0x9f
                              : lead == 0xf4 ? 0x8f
                                             : 0xbf;
        if (bytes[i] < low || bytes[i] > high) return 0;
    }
    return length;
}

size_t ls_utf8_shown(const char *text, size_t count) {
    bool short_of;
    const unsigned char *bytes = (const unsigned char *)text;
    const size_t length = ls_utf8_character(text, count, &short_of);
    if (bytes[0] < 0x20 || bytes[0] == 0x7f || (length == 2 && bytes[0] == 0xc2 && bytes[1] < 0xa0)) return 0;
    return length;
}

size_t ls_utf8_run(const char *text, size_t count, bool *valid) {
    bool short_of;
    size_t at = 0;
    while (at < count) {
        const size_t length = ls_utf8_character(text + at, count - at, &short_of);
        if (at == 0) *valid = length > 0;
        if ((length > 0) != *valid) break;
        at += length > 0 ? length : 1;
    }
    return at;
}

size_t ls_utf8_whole(const char *text, size_t count) {
    for (size_t back = 1; back <= 3 && back <= count; back++) {
        bool short_of;
        ls_utf8_character(text + count - back, back, &short_of);
        if (short_of) return count - back;
    }
    return count;
}
