/* Writes a resolved configuration as YAML, and digests the part of it that is the run's identity. */
#include "common/config.h"
#include "common/digest.h"
#include "common/key_table.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <xxhash.h>

/* The shortest text that reads back as the same number, with the point that YAML 1.1 wants. */
static void write_number(FILE *out, double number) {
    char text[40];
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, sizeof text - 2, "%.*g", digits, number);
        if (strtod(text, NULL) == number) break;
    }
    size_t mantissa = strcspn(text, "e");
    fprintf(out, "%.*s%s%s", (int)mantissa, text, memchr(text, '.', mantissa) ? "" : ".0", text + mantissa);
}

/* Decodes one character; returns its bytes, or 0 if they are not UTF-8. */
static int decode(const char *text, uint32_t *character) {
    const unsigned char *s = (const unsigned char *)text;
    int count = s[0] < 0x80 ? 1 : s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : s[0] >= 0xc2 ? 2 : 0;
    static const uint32_t LEAST[] = {0, 0, 0x80, 0x800, 0x10000};
    uint32_t value = count == 1 ? s[0] : count ? s[0] & (0x7fu >> count) : 0;
    for (int i = 1; i < count; i++) {
        if ((s[i] & 0xc0) != 0x80) return 0;
        value = value << 6 | (s[i] & 0x3fu);
    }
    if (count && (value < LEAST[count] || value > 0x10ffff || (value >= 0xd800 && value < 0xe000))) return 0;
    *character = value;
    return count;
}

/* True if YAML takes the character as it is between double quotes. */
static bool is_printable(uint32_t c) {
    return (c >= 0x20 && c < 0x7f) || (c >= 0xa0 && c < 0x2028) || (c > 0x2029 && c < 0xd800) ||
           (c >= 0xe000 && c < 0xfffe && c != 0xfeff) || c >= 0x10000;
}

/* True if the text can do without quotes in every YAML. */
static bool is_plain(const char *text) {
    static const char *const WORDS[] = {"true", "false", "yes", "no", "on", "off", "y", "n", "null"};
    for (size_t i = 0; i < sizeof WORDS / sizeof *WORDS; i++)
        if (!strcasecmp(text, WORDS[i])) return false;
    size_t length = strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._/-");
    return !text[length] && (isalpha((unsigned char)text[0]) || text[0] == '/');
}

/* Returns false if the text is not UTF-8, which YAML cannot hold. */
static bool write_text(FILE *out, const char *text) {
    if (is_plain(text)) return fputs(text, out) >= 0;
    fputc('"', out);
    while (*text) {
        uint32_t character;
        int bytes = decode(text, &character);
        if (!bytes) return false;
        if (character == '"' || character == '\\')
            fprintf(out, "\\%c", (char)character);
        else if (is_printable(character))
            fwrite(text, 1, (size_t)bytes, out);
        else
            fprintf(out, "\\u%04X", (unsigned)character);
        text += bytes;
    }
    fputc('"', out);
    return true;
}

static const char *choice_word(const struct ls_choice *choice, int value) {
    while (choice->word && (choice->refusal || choice->value != value)) choice++;
    return choice->word ? choice->word : "?";
}

/* A dataset as a flow map; for the identity without the path, which says where and not what. */
static bool write_source(FILE *out, const struct ls_config_source *source, bool identity) {
    const char *between = "{";
    bool fine = true;
    if (!identity) {
        fputs("{path: ", out);
        fine = write_text(out, source->path);
        between = ", ";
    }
    if (source->weight) fprintf(out, "%sweight: %lld", between, (long long)source->weight), between = ", ";
    if (source->dtype[0]) fprintf(out, "%sdtype: %s", between, source->dtype), between = ", ";
    if (source->document_token_id >= 0) {
        fprintf(out, "%sdocument_token: {id: %lld, at: %s}", between, (long long)source->document_token_id,
                source->document_token_at_end ? "end" : "start");
        between = "";
    }
    fputs(*between == '{' ? "{}" : "}", out);
    return fine;
}

static bool write_sources(FILE *out, const struct ls_config_source *sources, int count, bool identity) {
    bool fine = true;
    if (!count) fputs(" []", out);
    for (int i = 0; i < count; i++) {
        fputs("\n        - ", out);
        fine = write_source(out, &sources[i], identity) && fine;
    }
    return fine;
}

static bool write_texts(FILE *out, const char (*texts)[LS_CONFIG_TEXT_SIZE], int count) {
    bool fine = true;
    fputs(" [", out);
    for (int i = 0; i < count; i++) {
        fputs(i ? ", " : "", out);
        fine = write_text(out, texts[i]) && fine;
    }
    fputc(']', out);
    return fine;
}

/* Writes " VALUE" of a key. */
bool ls_key_write_value(FILE *out, const struct ls_key *key, const struct ls_config *config, bool identity) {
    const void *field = (const char *)config + key->offset;
    int64_t integer;
    double numbers[2];
    switch (key->type) {
    case LS_KEY_INTEGER:
        memcpy(&integer, field, sizeof integer);
        if (!integer && key->otherwise)
            fprintf(out, " %s", key->otherwise);
        else
            fprintf(out, " %lld", (long long)integer);
        return true;
    case LS_KEY_NUMBER:
        memcpy(numbers, field, sizeof *numbers);
        fputc(' ', out);
        write_number(out, numbers[0]);
        return true;
    case LS_KEY_PAIR:
        memcpy(numbers, field, sizeof numbers);
        fputs(" [", out);
        write_number(out, numbers[0]);
        fputs(", ", out);
        write_number(out, numbers[1]);
        fputc(']', out);
        return true;
    case LS_KEY_BOOLEAN: return fputs(*(const bool *)field ? " true" : " false", out) >= 0;
    case LS_KEY_CHOICE:
        fprintf(out, " %s",
                choice_word(key->choices, key->size == sizeof(bool) ? *(const bool *)field : *(const int *)field));
        return true;
    case LS_KEY_TEXT: fputc(' ', out); return *(const char *)field ? write_text(out, field) : fputs("null", out) >= 0;
    case LS_KEY_TEXTS: return write_texts(out, field, *(const int *)((const char *)config + key->count_offset));
    case LS_KEY_SOURCES:
        return write_sources(out, field, *(const int *)((const char *)config + key->count_offset), identity);
    }
    return false;
}

/* Writes the maps that `name` is in and `before` is not, then the indented last word. */
static void write_name(FILE *out, const char *name, const char *before) {
    size_t common = 0;
    for (size_t i = 0; name[i] && name[i] == before[i]; i++)
        if (name[i] == '.') common = i + 1;
    int depth = 0;
    for (size_t i = 0; i < common; i++) depth += name[i] == '.';
    for (const char *part = name + common, *dot; part; part = dot ? dot + 1 : NULL, depth++) {
        dot = strchr(part, '.');
        fprintf(out, "%*s%.*s:%s", 4 * depth, "", dot ? (int)(dot - part) : (int)strlen(part), part, dot ? "\n" : "");
    }
}

static bool write_keys(FILE *out, const struct ls_config *config, bool identity) {
    bool fine = true;
    const char *before = "";
    for (int i = 0; i < ls_config_keys.count; i++) {
        const struct ls_key *key = &ls_config_keys.keys[i];
        if (!ls_key_applies(key, config) || (identity && !key->identity)) continue;
        /* A path that is not given is no part of what is trained. */
        if (identity && key->type == LS_KEY_TEXT && !*((const char *)config + key->offset)) continue;
        if (identity && key->only_if_true && !*(const bool *)((const char *)config + key->offset)) continue;
        write_name(out, key->name, before);
        fine = ls_key_write_value(out, key, config, identity) && fine;
        fputc('\n', out);
        before = key->name;
    }
    return fine;
}

enum ls_code ls_config_write(const struct ls_config *config, char **yaml, struct ls_error *error) {
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    if (!out) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "Out of memory while writing the configuration.");
    bool fine = write_keys(out, config, false);
    if (fclose(out)) {
        free(text);
        return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "Out of memory while writing the configuration.");
    }
    if (!fine) {
        free(text);
        return ls_fail(
            error, LS_USAGE, LS_SCOPE_CALL,
            "The configuration of %s holds a path that is not UTF-8, which YAML cannot hold. Rename the folder.",
            config->name);
    }
    *yaml = text;
    return LS_OK;
}

void ls_config_digest(const struct ls_config *config, char digest[33]) {
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (!out) abort();
    write_keys(out, config, true);
    if (fclose(out)) abort();
    XXH128_hash_t hash = XXH3_128bits(text, size);
    free(text);
    ls_digest_format((struct ls_digest){.low = hash.low64, .high = hash.high64}, digest);
}
