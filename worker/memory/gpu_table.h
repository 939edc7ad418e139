/* GPUs by name: what their makers' data sheets say, for plans made where no such GPU is. */
#ifndef LS_WORKER_MEMORY_GPU_TABLE_H
#define LS_WORKER_MEMORY_GPU_TABLE_H

#include <stdint.h>

/* Floating-point operations a second are those of dense matrices. Memory is the data sheet's in decimal GB: the driver
 * shows up to 7 % more, which is about what its context and the libraries keep for themselves. */
struct ls_gpu {
    const char *name, *full_name;
    double half_flops, tf32_flops, fp32_flops; /* half: bf16 and fp16 with fp32 sums */
    int64_t memory_bytes;
    double memory_bytes_per_second;
    double link_bytes_per_second; /* to the other GPUs of the node, one direction: NVLink, or PCIe without it */
    const char *driver_name;      /* what the driver calls it */
};

/* The GPU of that name, letters in either case; NULL: unknown. */
const struct ls_gpu *ls_gpu_find(const char *name);
/* The GPU that a driver calls so; NULL: unknown. */
const struct ls_gpu *ls_gpu_of_driver(const char *name);
/* Row `index` of the table; NULL behind the last. */
const struct ls_gpu *ls_gpu_at(int index);

#endif
