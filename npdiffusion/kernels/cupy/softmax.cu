// Softmax of scale x. The axis to reduce over has `length` elements, `inner` apart: element k of column (o, i) is
// x[(o * length + k) * inner + i].

__device__ real warp_max(real value) {
    for (int lanes = 16; lanes > 0; lanes /= 2) value = fmax(value, __shfl_xor_sync(0xffffffffu, value, lanes));
    return value;
}

__device__ real warp_sum(real value) {
    for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
    return value;
}

// y = exp(z - max z) / sum exp(z - max z), z = scale x, along the last axis (inner = 1): a warp for each row, 8 warps
// in a block.
extern "C" __global__ void softmax_rows(const real *x, real *y, real scale, long long rows, int length) {
    const long long row = blockIdx.x * 8ll + threadIdx.x / 32;
    if (row >= rows) return;  // whole warps
    const int lane = threadIdx.x % 32;
    x += row * length;
    y += row * length;
    real largest = scale * x[0], sum = 0;
    for (int k = lane; k < length; k += 32) largest = fmax(largest, scale * x[k]);
    largest = warp_max(largest);  // fmax leaves NaN out, but then the sum is NaN, and so is all of the row
    for (int k = lane; k < length; k += 32) sum += exp(scale * x[k] - largest);
    sum = warp_sum(sum);
    for (int k = lane; k < length; k += 32) y[k] = exp(scale * x[k] - largest) / sum;
}

// dx = scale y (g - sum g y) along the last axis.
extern "C" __global__ void softmax_rows_backward(const real *g, const real *y, real *dx, real scale,
                                                 long long rows, int length) {
    const long long row = blockIdx.x * 8ll + threadIdx.x / 32;
    if (row >= rows) return;
    const int lane = threadIdx.x % 32;
    g += row * length;
    y += row * length;
    dx += row * length;
    real sum = 0;
    for (int k = lane; k < length; k += 32) sum += g[k] * y[k];
    sum = warp_sum(sum);
    for (int k = lane; k < length; k += 32) dx[k] = scale * y[k] * (g[k] - sum);
}

// The same along another axis: a thread for each column, neighbouring threads in neighbouring columns.
extern "C" __global__ void softmax_columns(const real *x, real *y, real scale, long long columns, int length,
                                           long long inner) {
    const long long column = blockIdx.x * 256ll + threadIdx.x;
    if (column >= columns) return;
    const long long start = column / inner * length * inner + column % inner;
    real largest = scale * x[start], sum = 0;
    for (int k = 1; k < length; k++) largest = fmax(largest, scale * x[start + k * inner]);
    for (int k = 0; k < length; k++) sum += exp(scale * x[start + k * inner] - largest);
    for (int k = 0; k < length; k++) y[start + k * inner] = exp(scale * x[start + k * inner] - largest) / sum;
}

extern "C" __global__ void softmax_columns_backward(const real *g, const real *y, real *dx, real scale,
                                                    long long columns, int length, long long inner) {
    const long long column = blockIdx.x * 256ll + threadIdx.x;
    if (column >= columns) return;
    const long long start = column / inner * length * inner + column % inner;
    real sum = 0;
    for (int k = 0; k < length; k++) sum += g[start + k * inner] * y[start + k * inner];
    for (int k = 0; k < length; k++)
        dx[start + k * inner] = scale * y[start + k * inner] * (g[start + k * inner] - sum);
}
