/* Errors with a code, a scope and a text. */
#include "common/status.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void replace_control_characters(char *text) {
    for (; *text; text++)
        if (iscntrl((unsigned char)*text) && *text != '\n') *text = '?';
}

enum ls_code(ls_fail)(struct ls_error *error, enum ls_code code, enum ls_scope scope, const char *format, ...) {
    if (!error) return code;
    /* The arguments may point into error->text itself. */
    char text[sizeof error->text];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    replace_control_characters(text);
    error->code = code;
    error->scope = scope;
    memcpy(error->text, text, sizeof text);
    return code;
}

enum ls_code ls_fail_within(struct ls_error *error, const char *format, ...) {
    if (!error) return LS_ERROR;
    char text[sizeof error->text];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (length >= 0 && (size_t)length < sizeof text)
        snprintf(text + length, sizeof text - (size_t)length, ": %s", error->text);
    replace_control_characters(text);
    memcpy(error->text, text, sizeof text);
    return error->code;
}

/* Where the first sentence ends: at a line's end, or at a full stop before a space and a capital or a quote. */
static size_t first_sentence(const char *text) {
    size_t i = 0;
    for (; text[i] && text[i] != '\n'; i++)
        if (text[i] == '.' && text[i + 1] == ' ' && (isupper((unsigned char)text[i + 2]) || text[i + 2] == '\'')) break;
    return i;
}

int ls_report_exit(enum ls_code code, const char *reason) {
    if (code == LS_OK) return LS_OK;
    size_t length = first_sentence(reason);
    if (strspn(reason + length, ". \n") < strlen(reason + length)) fprintf(stderr, "lockstep: %s\n", reason);
    while (length > 0 && reason[length - 1] == '.') length--;
    fprintf(stderr, "lockstep: exit %d (%s): %.*s\n", (int)code, ls_code_name(code), (int)length, reason);
    return code;
}

const char *ls_code_name(enum ls_code code) {
    switch (code) {
    case LS_OK: return "done";
    case LS_ERROR: return "error";
    case LS_USAGE: return "usage";
    case LS_DATA: return "data";
    case LS_CHECKPOINT: return "checkpoint";
    case LS_MEMORY: return "memory";
    case LS_COMMUNICATION: return "communication";
    case LS_NONFINITE: return "non-finite";
    case LS_STALL: return "stall";
    case LS_REQUEUE: return "saved, please requeue";
    case LS_STOPPED: return "stopped, saved";
    }
    return "unknown";
}
