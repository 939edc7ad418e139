/* The tensors of a model by their names, which files have in any order. */
#ifndef LS_WORKER_CHECKPOINT_NAMES_H
#define LS_WORKER_CHECKPOINT_NAMES_H

#include "worker/model/model.h"

struct ls_tensor_names;

/* Sorts the names of `model`, which has to outlive them. Owned by the caller. LS_MEMORY. */
enum ls_code ls_tensor_names_create(const struct ls_model *model, struct ls_tensor_names **names,
                                    struct ls_error *error);

/* May be NULL. */
void ls_tensor_names_destroy(struct ls_tensor_names *names);

/* The number of the tensor of that name, or -1. */
int ls_tensor_names_find(const struct ls_tensor_names *names, const char *name);

#endif
