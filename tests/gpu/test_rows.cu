/* Kernels over rows against double precision: norms and their gradients, sums of columns, embedding, cross-entropy. Odd
 * shapes, every type, aligned and not. */
#include "tests/gpu/harness.h"
#include "worker/device/cuda/workspace.h"

struct matrix {
    int64_t rows, columns, offset;
    enum ls_dtype dtype;
};

/* Rows short and long, of whole packs and not; more rows than one pass over them takes, and than one slice of a sum
 * over them has; more slices than a block has warps. */
static const struct matrix shapes[] = {
    {1, 1, 0, LS_FP32},    {3, 17, 0, LS_BF16},   {5, 64, 0, LS_FP32},   {37, 96, 0, LS_BF16},  {300, 40, 0, LS_FP16},
    {70, 129, 1, LS_FP32}, {9, 768, 0, LS_BF16},  {2, 5000, 0, LS_FP32}, {2, 4104, 0, LS_BF16}, {600, 24, 1, LS_BF16},
    {300, 13, 0, LS_FP32}, {2200, 8, 0, LS_BF16}, {1, 4096, 0, LS_BF16}, {4, 600, 0, LS_FP32},  {9, 2048, 0, LS_FP32}};

static void for_each(void (*test)(struct matrix shape)) {
    for (const struct matrix &shape : shapes) {
        if (brief && shape.rows * shape.columns > 5000) continue;
        test(shape);
        if (current_failed) return;
    }
}

/* Sums of n terms in fp32 err by some n^(1/2) roundings of their size, and butterflies by fewer: 1e-5 holds for rows of
 * 5000 with room. The result is rounded once more to its type. */
static void norm_case(struct matrix s, bool centred) {
    const int64_t count = s.rows * s.columns;
    const float epsilon = 1e-5f;
    struct array x = make_array(s.dtype, count, 2.0, s.offset), y = make_array(s.dtype, count, 1.0, s.offset);
    struct array weight = make_array(s.dtype, s.columns, 1.0), bias = make_array(s.dtype, s.columns, 1.0);
    struct array mean = make_array(LS_FP32, s.rows, 1.0), rstd = make_array(LS_FP32, s.rows, 1.0);
    if (centred) {
        const struct ls_op_layernorm_forward op = {y.device,
                                                   (float *)mean.device,
                                                   (float *)rstd.device,
                                                   x.device,
                                                   weight.device,
                                                   bias.device,
                                                   s.rows,
                                                   s.columns,
                                                   epsilon,
                                                   s.dtype};
        check_cuda(ls_cuda_layernorm_forward(&op, 0));
    } else {
        const struct ls_op_rmsnorm_forward op = {
            y.device, (float *)rstd.device, x.device, weight.device, s.rows, s.columns, epsilon, s.dtype};
        check_cuda(ls_cuda_rmsnorm_forward(&op, 0));
    }
    double *means = zero_doubles(s.rows), *rstds = zero_doubles(s.rows), *expected = zero_doubles(count);
    const double *in = x.value;
    for (int64_t r = 0; r < s.rows; r++) {
        double square = 0.0;
        for (int64_t c = 0; c < s.columns && centred; c++) means[r] += in[r * s.columns + c] / (double)s.columns;
        for (int64_t c = 0; c < s.columns; c++) square += pow(in[r * s.columns + c] - means[r], 2.0);
        rstds[r] = 1.0 / sqrt(square / (double)s.columns + (double)epsilon);
        for (int64_t c = 0; c < s.columns; c++)
            expected[r * s.columns + c] =
                (in[r * s.columns + c] - means[r]) * rstds[r] * weight.value[c] + (centred ? bias.value[c] : 0.0);
    }
    check_close("normed", &y, expected, rounding_of(s.dtype) + 1e-5, 1e-5);
    check_close("rstd", &rstd, rstds, 1e-5, 0.0);
    if (centred) check_close("mean", &mean, means, 1e-5, 1e-6);

    struct array *all[] = {&x, &y, &weight, &bias, &mean, &rstd};
    for (struct array *a : all) free_array(a);
    free(expected), free(means), free(rstds);
}
static void layernorm_case(struct matrix s) {
    norm_case(s, true);
}
static void rmsnorm_case(struct matrix s) {
    norm_case(s, false);
}
static void layernorm_is_right(void) {
    for_each(layernorm_case);
}
static void rmsnorm_is_right(void) {
    for_each(rmsnorm_case);
}

/* `over`: the input's gradient is written over the output's, as a model may ask for. */
static void norm_gradient_case(struct matrix s, bool centred, bool accumulate, bool over) {
    const int64_t count = s.rows * s.columns;
    struct array x = make_array(s.dtype, count, 2.0, s.offset), dy = make_array(s.dtype, count, 1.0, s.offset);
    struct array dx = make_array(s.dtype, count, 1.0, s.offset), weight = make_array(s.dtype, s.columns, 1.0);
    struct array dw = make_array(LS_FP32, s.columns, 1.0), db = make_array(LS_FP32, s.columns, 1.0);
    struct array mean = make_array(LS_FP32, s.rows, 0.5), rstd = make_array(LS_FP32, s.rows, 2.0);
    double *dx_expected = zero_doubles(count), *dw_expected = copy_values(&dw), *db_expected = copy_values(&db);
    for (int64_t r = 0; r < s.rows; r++) {
        double sum = 0.0, product = 0.0;
        const double m = centred ? mean.value[r] : 0.0, n = (double)s.columns;
        for (int64_t c = 0; c < s.columns; c++) {
            const int64_t i = r * s.columns + c;
            const double normed = (x.value[i] - m) * rstd.value[r], d = dy.value[i] * weight.value[c];
            sum += centred ? d : 0.0;
            product += d * normed;
            dw_expected[c] += dy.value[i] * normed;
            db_expected[c] += centred ? dy.value[i] : 0.0;
        }
        for (int64_t c = 0; c < s.columns; c++) {
            const int64_t i = r * s.columns + c;
            const double normed = (x.value[i] - m) * rstd.value[r], d = dy.value[i] * weight.value[c];
            dx_expected[i] = (accumulate ? dx.value[i] : 0.0) + rstd.value[r] * (d - sum / n - normed * product / n);
        }
    }
    void *to = over ? dy.device : dx.device;
    void *workspace = device_allocate((size_t)ls_cuda_norm_workspace(s.columns, s.dtype, centred ? 2 : 1));
    if (centred) {
        const struct ls_op_layernorm_backward op = {to,
                                                    workspace,
                                                    (float *)dw.device,
                                                    (float *)db.device,
                                                    dy.device,
                                                    x.device,
                                                    weight.device,
                                                    (const float *)mean.device,
                                                    (const float *)rstd.device,
                                                    s.rows,
                                                    s.columns,
                                                    accumulate,
                                                    s.dtype};
        check_cuda(ls_cuda_layernorm_backward(&op, 0));
    } else {
        const struct ls_op_rmsnorm_backward op = {
            to,     workspace, (float *)dw.device, dy.device, x.device, weight.device, (const float *)rstd.device,
            s.rows, s.columns, accumulate,         s.dtype};
        check_cuda(ls_cuda_rmsnorm_backward(&op, 0));
    }
    check_close("dx", over ? &dy : &dx, dx_expected, rounding_of(s.dtype) + 1e-5, 1e-4);
    check_close("dweight", &dw, dw_expected, 1e-5, 1e-4);
    check_close("dbias", &db, db_expected, 1e-5, 1e-4); /* untouched when there is none */
    struct array *all[] = {&x, &dy, &dx, &weight, &dw, &db, &mean, &rstd};
    for (struct array *a : all) free_array(a);
    free(dx_expected), free(dw_expected), free(db_expected), device_free(workspace);
}
static void layernorm_gradient_case(struct matrix s) {
    norm_gradient_case(s, true, true, false);
    norm_gradient_case(s, true, false, true);
}
static void rmsnorm_gradient_case(struct matrix s) {
    norm_gradient_case(s, false, true, false);
    norm_gradient_case(s, false, false, true);
}
static void layernorm_gradients_are_right(void) {
    for_each(layernorm_gradient_case);
}
static void rmsnorm_gradients_are_right(void) {
    for_each(rmsnorm_gradient_case);
}

/* Three heads a row, and what lies between rows stays as it was. The gradient is written over the output's. */
static void head_norm_case(struct matrix s) {
    const int64_t heads = 3, size = s.columns, stride = heads * size + (s.offset ? 5 : 16), count = s.rows * stride;
    if (count > 40000) return;
    const float epsilon = 1e-5f;
    struct array x = make_array(s.dtype, count, 2.0, s.offset), y = make_array(s.dtype, count, 1.0, s.offset);
    struct array dy = make_array(s.dtype, count, 1.0, s.offset), weight = make_array(s.dtype, size, 1.0);
    struct array rstd = make_array(LS_FP32, s.rows * heads, 1.0), dw = make_array(LS_FP32, size, 1.0);
    double *expected = copy_values(&y), *dx_expected = copy_values(&dy), *dw_expected = copy_values(&dw);
    double *rstds = zero_doubles(s.rows * heads);
    for (int64_t head = 0; head < s.rows * heads; head++) {
        const int64_t at = head / heads * stride + head % heads * size;
        double square = 0.0, product = 0.0;
        for (int64_t c = 0; c < size; c++) square += x.value[at + c] * x.value[at + c] / (double)size;
        const double r = rstds[head] = 1.0 / sqrt(square + (double)epsilon);
        for (int64_t c = 0; c < size; c++) {
            expected[at + c] = x.value[at + c] * r * weight.value[c];
            product += dy.value[at + c] * weight.value[c] * x.value[at + c] * r / (double)size;
            dw_expected[c] += dy.value[at + c] * x.value[at + c] * r;
        }
        for (int64_t c = 0; c < size; c++)
            dx_expected[at + c] = r * (dy.value[at + c] * weight.value[c] - x.value[at + c] * r * product);
    }
    const struct ls_op_head_norm_forward forward = {
        y.device, (float *)rstd.device, x.device, weight.device, s.rows, heads, size, stride, epsilon, s.dtype};
    check_cuda(ls_cuda_head_norm_forward(&forward, 0));
    void *workspace = device_allocate((size_t)ls_cuda_column_workspace(size, 1));
    const struct ls_op_head_norm_backward backward = {dy.device,
                                                      workspace,
                                                      (float *)dw.device,
                                                      dy.device,
                                                      x.device,
                                                      weight.device,
                                                      (const float *)rstd.device,
                                                      s.rows,
                                                      heads,
                                                      size,
                                                      stride,
                                                      s.dtype};
    check_cuda(ls_cuda_head_norm_backward(&backward, 0));
    check_close("normed heads", &y, expected, rounding_of(s.dtype) + 1e-5, 1e-5);
    check_close("rstd", &rstd, rstds, 1e-5, 0.0);
    check_close("dx", &dy, dx_expected, rounding_of(s.dtype) + 1e-5, 1e-4);
    check_close("dweight", &dw, dw_expected, 1e-5, 1e-4);
    struct array *all[] = {&x, &y, &dy, &weight, &rstd, &dw};
    for (struct array *a : all) free_array(a);
    free(expected), free(dx_expected), free(dw_expected), free(rstds), device_free(workspace);
}
static void head_norms_and_their_gradients_are_right(void) {
    for_each(head_norm_case);
}

static void bias_case(struct matrix s) {
    struct array d = make_array(s.dtype, s.rows * s.columns, 1.0, s.offset), sum = make_array(LS_FP32, s.columns, 1.0);
    double *expected = copy_values(&sum);
    for (int64_t i = 0; i < s.rows * s.columns; i++) expected[i % s.columns] += d.value[i];
    void *workspace = device_allocate((size_t)ls_cuda_column_workspace(s.columns, 1));
    const struct ls_op_bias_backward op = {(float *)sum.device, workspace, d.device, s.rows, s.columns, s.dtype};
    check_cuda(ls_cuda_bias_backward(&op, 0));
    check_close("bias gradient", &sum, expected, 1e-5, 1e-4);
    free_array(&d), free_array(&sum), free(expected), device_free(workspace);
}
static void bias_gradients_are_sums_of_columns(void) {
    for_each(bias_case);
}

/* Few tokens, many times: sums of equal tokens in order, in fp32, whose bits the test makes too. */
static void embedding_of(struct matrix s, int64_t batch, int64_t vocabulary, const int32_t *tokens) {
    const int64_t length = s.rows, channels = s.columns, first = random_below(3), rows = batch * length;
    int32_t *on_device = put_values(tokens, rows);
    struct array table = make_array(s.dtype, vocabulary * channels, 1.0, s.offset);
    struct array positions = make_array(s.dtype, (first + length) * channels, 1.0);
    struct array y = make_array(s.dtype, rows * channels, 1.0),
                 dy = make_array(s.dtype, rows * channels, 1.0, s.offset);
    struct array dt = make_array(LS_FP32, vocabulary * channels, 1.0), dp = make_array(LS_FP32, length * channels, 1.0);
    double *expected = zero_doubles(rows * channels), *dt_expected = copy_values(&dt), *dp_expected = copy_values(&dp);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t c = 0; c < channels; c++) {
            double *t = dt_expected + tokens[row] * channels + c, *p = dp_expected + row % length * channels + c;
            expected[row * channels + c] =
                table.value[tokens[row] * channels + c] + positions.value[(first + row % length) * channels + c];
            *t = (double)((float)*t + (float)dy.value[row * channels + c]);
            *p = (double)((float)*p + (float)dy.value[row * channels + c]);
        }
    const struct ls_op_embedding_forward op = {y.device, on_device, table.device, positions.device, batch,
                                               length,   channels,  first,        s.dtype};
    check_cuda(ls_cuda_embedding_forward(&op, 0));
    check_close("embedded", &y, expected, rounding_of(s.dtype), 0.0);
    for (int64_t i = 0; i < rows * channels; i++)
        expected[i] = table.value[tokens[i / channels] * channels + i % channels];
    struct ls_op_embedding_forward plain = op;
    plain.position_table = NULL;
    check_cuda(ls_cuda_embedding_forward(&plain, 0));
    check_close("rows of the table", &y, expected, 0.0, 0.0);
    struct ls_op_embedding_backward back = {
        (float *)dt.device, (float *)dp.device, NULL,   dy.device, on_device, batch, length,
        channels,           vocabulary,         s.dtype};
    back.workspace = device_allocate((size_t)ls_cuda_embedding_workspace(&back));
    check_cuda(ls_cuda_embedding_backward(&back, 0));
    check_close("token gradient", &dt, dt_expected, 0.0, 0.0);
    check_close("position gradient", &dp, dp_expected, 0.0, 0.0);
    struct ls_op_embedding_backward none = back;
    none.token_gradient = none.position_gradient = NULL;
    none.workspace = NULL;
    check_cuda(ls_cuda_embedding_backward(&none, 0));
    struct array *all[] = {&table, &positions, &y, &dy, &dt, &dp};
    for (struct array *a : all) free_array(a);
    free(expected), free(dt_expected), free(dp_expected), device_free(on_device), device_free(back.workspace);
}
static void embedding_case(struct matrix s) {
    const int64_t batch = 1 + random_below(3), rows = batch * s.rows, vocabulary = 7;
    if (rows * s.columns > 30000) return;
    int32_t *tokens = (int32_t *)malloc((size_t)rows * sizeof *tokens);
    for (int64_t i = 0; i < rows; i++) tokens[i] = (int32_t)random_below(vocabulary - 1); /* the last one never */
    embedding_of(s, batch, vocabulary, tokens);
    free(tokens);
}
static void embedding_adds_equal_tokens_in_order(void) {
    for_each(embedding_case);
}

/* Places are sorted 256 by one block, then eight such stretches at a time: 1 to 3 times here. Runs of one token end at,
 * before and behind a warp's 32 places, and go on over many. */
static void runs_of_tokens_of_any_length_are_added_in_order(void) {
    static const struct {
        int64_t rows, columns, divisor; /* the token is place / divisor, counted down; 0: at random, in no order */
        int64_t vocabulary;
        enum ls_dtype dtype;
    } cases[] = {{31, 8, 1000, 1, LS_BF16},    {700, 12, 1000, 1, LS_BF16}, /* all the same */
                 {256, 3, 1, 256, LS_FP32},    {300, 132, 1, 300, LS_FP16}, /* all different */
                 {640, 2, 32, 20, LS_FP32},    {330, 4, 33, 10, LS_BF16},   {527, 6, 31, 17, LS_FP32},
                 {2049, 1, 0, 40, LS_FP32},    {3000, 4, 100, 30, LS_BF16}, {5000, 1, 0, 30000, LS_FP16},
                 {17000, 1, 0, 50257, LS_FP32}};
    for (const auto &c : cases) {
        if (brief && c.rows * c.columns > 2200) continue;
        int32_t *tokens = (int32_t *)malloc((size_t)c.rows * sizeof *tokens);
        for (int64_t i = 0; i < c.rows; i++)
            tokens[i] = (int32_t)(c.divisor ? c.vocabulary - 1 - i / c.divisor : random_below(c.vocabulary));
        embedding_of({c.rows, c.columns, 0, c.dtype}, 1, c.vocabulary, tokens);
        free(tokens);
    }
}

/* A sum of exponentials errs by about one part in 10^6, p with it; gradients are of order gradient_scale * p. */
static void cross_entropy_case(struct matrix s) {
    const int64_t vocabulary = s.columns, stride = vocabulary + (s.columns % 8 ? 3 : 8), rows = s.rows;
    const float scale = 0.37f;
    if (rows > 40) return; /* a block each */
    struct array x = make_array(s.dtype, rows * stride, 8.0, s.offset), row_loss = make_array(LS_FP32, rows, 1.0);
    int32_t *targets = (int32_t *)malloc((size_t)rows * sizeof *targets);
    for (int64_t r = 0; r < rows; r++) targets[r] = random_below(4) == 0 ? -1 : (int32_t)random_below(vocabulary);
    int32_t *on_device = put_values(targets, rows);
    const double before = 1.5;
    double *loss = put_values(&before, 1);
    float *scale_on_device = put_values(&scale, 1);
    double *expected = zero_doubles(rows * stride), *losses = zero_doubles(rows), total = before;
    for (int64_t r = 0; r < rows; r++) {
        double sum = 0.0;
        if (targets[r] < 0) continue;
        for (int64_t c = 0; c < vocabulary; c++) sum += exp(x.value[r * stride + c]);
        losses[r] = log(sum) - x.value[r * stride + targets[r]];
        total += losses[r];
        for (int64_t c = 0; c < vocabulary; c++)
            expected[r * stride + c] =
                (exp(x.value[r * stride + c]) / sum - (c == targets[r] ? 1.0 : 0.0)) * (double)scale;
    }
    struct ls_op_cross_entropy op = {x.device, loss,       on_device, scale_on_device, (float *)row_loss.device,
                                     rows,     vocabulary, stride,    false,           s.dtype};
    double *logits = copy_values(&x);
    check_cuda(ls_cuda_cross_entropy(&op, 0));
    check_close("logits without a gradient", &x, logits, 0.0, 0.0);
    check_close("losses of rows", &row_loss, losses, 1e-5, 1e-5);
    const double once = get_value(loss);
    if (!(fabs(once - total) <= 1e-5 * (fabs(total) + 1.0))) fail("loss %.9g, the reference %.9g", once, total);
    double summed = before; /* in double, whatever the order */
    for (int64_t r = 0; r < rows; r++) summed += row_loss.value[r];
    if (!(fabs(once - summed) <= 1e-13 * (fabs(summed) + 1.0))) fail("loss %.17g, its rows' %.17g", once, summed);
    op.gradient = true;
    device_copy(loss, &before, sizeof before);
    check_cuda(ls_cuda_cross_entropy(&op, 0));
    if (get_value(loss) != once) fail("loss %.17g, and the second time %.17g", once, get_value(loss));
    check_close("gradient", &x, expected, rounding_of(s.dtype) + 1e-5, 1e-6);
    free_array(&x), free_array(&row_loss), free(targets), free(expected), free(losses), free(logits);
    device_free(on_device), device_free(loss), device_free(scale_on_device);
}
static void cross_entropy_and_its_gradient_are_right(void) {
    for_each(cross_entropy_case);
}

/* More rows than their sum takes at once; logits that grow along a row, so that the maximum does, and fall; that are
 * -infinity from the first on; far apart. Rows are of two packs and a half. */
static void losses_of_any_logits_are_added(void) {
    const int64_t rows = brief ? 20 : 4300, vocabulary = 20, stride = 24;
    struct array x = make_array(LS_BF16, rows * stride, 1.0), row_loss = make_array(LS_FP32, rows, 1.0);
    int32_t *targets = (int32_t *)malloc((size_t)rows * sizeof *targets);
    double *losses = zero_doubles(rows), total = 0.0;
    for (int64_t r = 0; r < rows; r++) {
        targets[r] = 7 + (int32_t)random_below(vocabulary - 7);
        for (int64_t c = 0; c < vocabulary; c++) {
            double *logit = &x.value[r * stride + c];
            if (r % 4 == 0) *logit = (double)(10 * c) - 150.0;
            if (r % 4 == 1) *logit = 3.0 - (double)c;
            if (r % 4 == 2 && c < 7) *logit = -INFINITY;
            if (r % 4 == 3) *logit = c % 2 ? 3e38 : -3e38;
        }
        if (r % 4 == 3) targets[r] |= 1; /* one of ten that are the same, the others are nothing beside them */
    }
    send(&x);
    for (int64_t r = 0; r < rows; r++) {
        const double *logits = x.value + r * stride;
        double sum = 0.0;
        for (int64_t c = 0; c < vocabulary; c++) sum += exp(logits[c] - logits[targets[r]]);
        total += losses[r] = log(sum);
    }
    const double zero = 0.0;
    int32_t *on_device = put_values(targets, rows);
    double *loss = put_values(&zero, 1);
    const struct ls_op_cross_entropy op = {x.device, loss,       on_device, NULL,  (float *)row_loss.device,
                                           rows,     vocabulary, stride,    false, LS_BF16};
    check_cuda(ls_cuda_cross_entropy(&op, 0));
    check_close("losses of rows", &row_loss, losses, 1e-5, 1e-5);
    if (!(fabs(get_value(loss) - total) <= 1e-5 * total)) fail("loss %.17g, not %.17g", get_value(loss), total);
    free_array(&x), free_array(&row_loss), free(targets), free(losses), device_free(on_device), device_free(loss);
}

static void a_logit_that_is_no_number_makes_the_loss_none(void) {
    struct array x = make_array(LS_BF16, 300, 1.0), row_loss = make_array(LS_FP32, 1, 1.0);
    const int32_t target = 5;
    const double zero = 0.0;
    int32_t *targets = put_values(&target, 1);
    double *loss = put_values(&zero, 1);
    x.value[random_below(300)] = NAN;
    send(&x);
    const struct ls_op_cross_entropy op = {x.device, loss, targets, NULL,  (float *)row_loss.device,
                                           1,        300,  300,     false, LS_BF16};
    check_cuda(ls_cuda_cross_entropy(&op, 0));
    if (!isnan(get_value(loss))) fail("loss %g", get_value(loss));
    free_array(&x), free_array(&row_loss), device_free(targets), device_free(loss);
}

int main(void) {
    begin_tests();
    run_test("layer normalisation is right", layernorm_is_right);
    run_test("its gradients are right", layernorm_gradients_are_right);
    run_test("root-mean-square normalisation is right", rmsnorm_is_right);
    run_test("its gradients are right", rmsnorm_gradients_are_right);
    run_test("norms of heads and their gradients are right, over their input too",
             head_norms_and_their_gradients_are_right);
    run_test("bias gradients are sums of columns", bias_gradients_are_sums_of_columns);
    run_test("embedding adds equal tokens in order", embedding_adds_equal_tokens_in_order);
    run_test("runs of tokens of any length are added in order", runs_of_tokens_of_any_length_are_added_in_order);
    run_test("cross-entropy and its gradient are right", cross_entropy_and_its_gradient_are_right);
    run_test("losses of any logits are added", losses_of_any_logits_are_added);
    run_test("a logit that is no number makes the loss none", a_logit_that_is_no_number_makes_the_loss_none);
    return end_tests();
}
