/* The table of GPUs. */
#include "worker/memory/gpu_table.h"

#include <stddef.h>
#include <string.h>
#include <strings.h>

#define TFLOPS(x)      ((x)*1e12)
#define GB(x)          ((int64_t)(x)*1000000000)
#define GB_A_SECOND(x) ((x)*1e9)

/* Sources, all NVIDIA's: "H100 Tensor Core GPU" (2024), "H200 Tensor Core GPU" (2024), "DGX B200" (2024; an eighth of
 * the system), "A100 Tensor Core GPU" (2021; the 40 GB card of 2020), "L40S" (2023), "L4" (2023), "A10" (2021), "Ada
 * GPU Architecture" and "Ampere GA102 GPU Architecture" (whitepapers, for the GeForce cards). Where they print rates
 * for sparse matrices, half of them stand here. */
static const struct ls_gpu gpus[] = {
    {"h100-sxm", "NVIDIA H100 SXM5 80 GB", TFLOPS(989.4), TFLOPS(494.7), TFLOPS(66.9), GB(80), GB_A_SECOND(3350),
     GB_A_SECOND(450), "NVIDIA H100 80GB HBM3"},
    {"h100-pcie", "NVIDIA H100 PCIe 80 GB", TFLOPS(756.5), TFLOPS(378), TFLOPS(51.2), GB(80), GB_A_SECOND(2000),
     GB_A_SECOND(64), "NVIDIA H100 PCIe"},
    {"h100-nvl", "NVIDIA H100 NVL 94 GB", TFLOPS(835.5), TFLOPS(417.5), TFLOPS(60), GB(94), GB_A_SECOND(3900),
     GB_A_SECOND(300), "NVIDIA H100 NVL"},
    {"h200", "NVIDIA H200 SXM 141 GB", TFLOPS(989.4), TFLOPS(494.7), TFLOPS(66.9), GB(141), GB_A_SECOND(4800),
     GB_A_SECOND(450), "NVIDIA H200"},
    {"b200", "NVIDIA B200 SXM 180 GB", TFLOPS(2250), TFLOPS(1125), TFLOPS(75), GB(180), GB_A_SECOND(8000),
     GB_A_SECOND(900), "NVIDIA B200"},
    {"a100-40", "NVIDIA A100 SXM4 40 GB", TFLOPS(312), TFLOPS(156), TFLOPS(19.5), GB(40), GB_A_SECOND(1555),
     GB_A_SECOND(300), "NVIDIA A100-SXM4-40GB"},
    {"a100-80", "NVIDIA A100 SXM4 80 GB", TFLOPS(312), TFLOPS(156), TFLOPS(19.5), GB(80), GB_A_SECOND(2039),
     GB_A_SECOND(300), "NVIDIA A100-SXM4-80GB"},
    {"a100-pcie", "NVIDIA A100 PCIe 80 GB", TFLOPS(312), TFLOPS(156), TFLOPS(19.5), GB(80), GB_A_SECOND(1935),
     GB_A_SECOND(32), "NVIDIA A100 80GB PCIe"},
    {"l40s", "NVIDIA L40S 48 GB", TFLOPS(362), TFLOPS(183), TFLOPS(91.6), GB(48), GB_A_SECOND(864), GB_A_SECOND(32),
     "NVIDIA L40S"},
    {"l4", "NVIDIA L4 24 GB", TFLOPS(121), TFLOPS(60), TFLOPS(30.3), GB(24), GB_A_SECOND(300), GB_A_SECOND(32),
     "NVIDIA L4"},
    {"a10", "NVIDIA A10 24 GB", TFLOPS(125), TFLOPS(62.5), TFLOPS(31.2), GB(24), GB_A_SECOND(600), GB_A_SECOND(32),
     "NVIDIA A10"},
    {"rtx-4090", "NVIDIA GeForce RTX 4090 24 GB", TFLOPS(165.2), TFLOPS(82.6), TFLOPS(82.6), GB(24), GB_A_SECOND(1008),
     GB_A_SECOND(32), "NVIDIA GeForce RTX 4090"},
    {"rtx-3090", "NVIDIA GeForce RTX 3090 24 GB", TFLOPS(71), TFLOPS(35.6), TFLOPS(35.6), GB(24), GB_A_SECOND(936),
     GB_A_SECOND(32), "NVIDIA GeForce RTX 3090"},
};
enum { COUNT = sizeof gpus / sizeof gpus[0] };

const struct ls_gpu *ls_gpu_at(int index) {
    return index >= 0 && index < COUNT ? &gpus[index] : NULL;
}

const struct ls_gpu *ls_gpu_of_driver(const char *name) {
    for (int i = 0; i < COUNT; i++)
        if (strcmp(name, gpus[i].driver_name) == 0) return &gpus[i];
    return NULL;
}

const struct ls_gpu *ls_gpu_find(const char *name) {
    for (int i = 0; i < COUNT; i++)
        if (strcasecmp(name, gpus[i].name) == 0) return &gpus[i];
    return NULL;
}
