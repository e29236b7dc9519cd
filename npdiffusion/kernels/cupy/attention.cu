// Softmax. The axis to reduce over has `length` elements, `inner` apart: element k of column (o, i) is
// x[(o * length + k) * inner + i]. LANES threads share a column: 32, a warp, where its elements lie side by side
// (inner = 1), else one, with the columns of neighbouring threads side by side.

__device__ real max_of_lanes(real value) {
    for (int lanes = LANES / 2; lanes > 0; lanes /= 2) value = fmax(value, __shfl_xor_sync(0xffffffffu, value, lanes));
    return value;
}

__device__ real sum_of_lanes(real value) {
    for (int lanes = LANES / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
    return value;
}

// y = exp(x - m) / sum exp(x - m), m = max x or `lowest`: if that is finite, nothing but -inf gives zeros, else NaN.
extern "C" __global__ void softmax(const real *x, real *y, long long columns, int length, long long inner,
                                   double lowest) {
    const long long column = (blockIdx.x * 256ll + threadIdx.x) / LANES;
    if (column >= columns) return;  // whole warps, if a warp shares it
    const long long start = column / inner * length * inner + column % inner;
    const int lane = threadIdx.x % LANES;
    x += start;
    y += start;
    real largest = lowest, sum = 0;
    for (int k = lane; k < length; k += LANES) largest = fmax(largest, x[k * inner]);
    largest = max_of_lanes(largest);  // fmax leaves NaN out, but then the sum is NaN, and so is all of the column
    for (int k = lane; k < length; k += LANES) sum += exp(x[k * inner] - largest);
    sum = sum_of_lanes(sum);
    if (sum == 0) sum = 1;
    for (int k = lane; k < length; k += LANES) y[k * inner] = exp(x[k * inner] - largest) / sum;
}

// dx = y (g - sum g y).
extern "C" __global__ void softmax_backward(const real *g, const real *y, real *dx, long long columns, int length,
                                            long long inner) {
    const long long column = (blockIdx.x * 256ll + threadIdx.x) / LANES;
    if (column >= columns) return;
    const long long start = column / inner * length * inner + column % inner;
    const int lane = threadIdx.x % LANES;
    g += start;
    y += start;
    dx += start;
    real sum = 0;
    for (int k = lane; k < length; k += LANES) sum += g[k * inner] * y[k * inner];
    sum = sum_of_lanes(sum);
    for (int k = lane; k < length; k += LANES) dx[k * inner] = y[k * inner] * (g[k * inner] - sum);
}
