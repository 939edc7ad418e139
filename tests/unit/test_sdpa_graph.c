/* The graphs of attention against the real cuDNN: every descriptor of them finalises. It needs no GPU for that, but for
 * the graph itself, which is not made here. Without the library the tests are skipped. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#if defined(LS_CUDA) && defined(LS_CUDNN)

#include "worker/device/cuda/sdpa_graph.h"

static const struct ls_cudnn *open_library(void) {
    const struct ls_cudnn *library = NULL;
    struct ls_error error;
    if (ls_library_cudnn(&library, &error) != LS_OK) {
        print_message("%s\n", error.text);
        skip();
    }
    return library;
}

/* The layout of a layer's packed rows [q: heads, k: kv heads, v: kv heads]. */
static struct ls_sdpa_shape packed_rows(int64_t batch, int64_t length, int64_t heads, int64_t kv_heads,
                                        int64_t head_size, enum ls_dtype dtype) {
    const int64_t row = (heads + 2 * kv_heads) * head_size, output = heads * head_size;
    return (struct ls_sdpa_shape){.batch = batch,
                                  .length = length,
                                  .heads = heads,
                                  .kv_heads = kv_heads,
                                  .head_size = head_size,
                                  .q_stride = row,
                                  .kv_stride = row,
                                  .output_stride = output,
                                  .q_batch_stride = length * row,
                                  .kv_batch_stride = length * row,
                                  .output_batch_stride = length * output,
                                  .dtype = dtype};
}

static const struct {
    int64_t batch, length, heads, kv_heads, head_size;
    enum ls_dtype dtype;
} shapes[] = {{16, 1024, 12, 12, 64, LS_BF16}, /* GPT-2 124M */
              {4, 4096, 32, 8, 128, LS_BF16},  /* Llama with shared key-value heads */
              {1, 1000, 25, 25, 64, LS_FP16},  /* a length that is no multiple of a tile */
              {3, 77, 6, 1, 8, LS_BF16}};

static void every_descriptor_finalises(void **state) {
    const struct ls_cudnn *library = open_library();
    static struct ls_sdpa_graph graph;
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const struct ls_sdpa_shape shape = packed_rows(shapes[i].batch, shapes[i].length, shapes[i].heads,
                                                       shapes[i].kv_heads, shapes[i].head_size, shapes[i].dtype);
        for (int backward = 0; backward < 2; backward++) {
            const cudnnStatus_t status =
                (backward ? ls_sdpa_graph_backward : ls_sdpa_graph_forward)(library, NULL, &shape, &graph);
            if (status)
                fail_msg("shape %zu, %s: %s answered %d, %s", i, backward ? "backward" : "forward", graph.failed,
                         (int)status, library->cudnnGetErrorString(status));
            /* forward: 2 products, 2 reductions, 10 element-wise (scale, 4 of the mask, sub, exp, log, add, div);
             * backward: 5 products, a reduction and one for each of dk and dv where heads are shared, 12 element-wise,
             * 3 reshapes */
            const bool shared = shapes[i].heads != shapes[i].kv_heads;
            assert_int_equal(graph.operation_count, backward ? (shared ? 23 : 21) : 14);
            assert_null(graph.graph);
            ls_sdpa_graph_clear(&graph);
            assert_int_equal(graph.descriptor_count, 0);
        }
    }
}

/* The check above can fail: the library looks at what it is given. */
static void a_wrong_tensor_is_refused(void **state) {
    const struct ls_cudnn *library = open_library();
    static struct ls_sdpa_graph graph;
    struct ls_sdpa_shape shape = packed_rows(2, 64, 4, 4, 64, LS_BF16);
    (void)state;
    shape.length = -1;
    assert_int_not_equal(ls_sdpa_graph_forward(library, NULL, &shape, &graph), CUDNN_STATUS_SUCCESS);
    assert_non_null(graph.failed);
    ls_sdpa_graph_clear(&graph);
    shape = packed_rows(2, 64, 4, 3, 64, LS_BF16); /* 4 heads on 3 */
    assert_int_not_equal(ls_sdpa_graph_backward(library, NULL, &shape, &graph), CUDNN_STATUS_SUCCESS);
    ls_sdpa_graph_clear(&graph);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_descriptor_finalises),
                                       cmocka_unit_test(a_wrong_tensor_is_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else

static void there_is_nothing_to_test(void **state) {
    (void)state;
    print_message("this build has no CUDA, or cuDNN's headers were not there\n");
    skip();
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(there_is_nothing_to_test)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#endif
