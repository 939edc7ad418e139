/* A sorted list of numbers, searched by halves. */
#define _GNU_SOURCE
#include "worker/checkpoint/names.h"

#include <stdlib.h>
#include <string.h>

struct ls_tensor_names {
    const struct ls_model *model;
    int sorted[]; /* [tensors] */
};

/* qsort_r's argument is the model. */
static int compare(const void *left, const void *right, void *model) {
    return strcmp(ls_model_tensor(model, *(const int *)left)->name, ls_model_tensor(model, *(const int *)right)->name);
}

enum ls_code ls_tensor_names_create(const struct ls_model *model, struct ls_tensor_names **names,
                                    struct ls_error *error) {
    const int count = ls_model_tensor_count(model);
    struct ls_tensor_names *made = malloc(sizeof *made + (size_t)count * sizeof *made->sorted);
    if (!made)
        return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "checkpoint: no memory for the names of %d tensors", count);
    made->model = model;
    for (int i = 0; i < count; i++) made->sorted[i] = i;
    qsort_r(made->sorted, (size_t)count, sizeof *made->sorted, compare, (void *)model);
    *names = made;
    return LS_OK;
}

void ls_tensor_names_destroy(struct ls_tensor_names *names) {
    free(names);
}

int ls_tensor_names_find(const struct ls_tensor_names *names, const char *name) {
    int low = 0, high = ls_model_tensor_count(names->model);
    while (low < high) {
        const int middle = low + (high - low) / 2, found = names->sorted[middle];
        const int order = strcmp(ls_model_tensor(names->model, found)->name, name);
        if (order == 0) return found;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return -1;
}
