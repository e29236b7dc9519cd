// Sums, activations, the gradient of indexing, and what else goes element by element: a thread for each element, where
// nothing else is said.

// out[i] = parts[0][i] + parts[1][i] + ...: a block sums 32 neighbouring elements; its thread (x, y) adds the parts
// y, y + 16, ... of element x.
extern "C" __global__ void sum_parts(const real *parts, real *out, int count, long long length) {
    __shared__ real sums[16][32];
    const int x = threadIdx.x, y = threadIdx.y;
    const long long i = blockIdx.x * 32ll + x;
    real sum = 0;
    if (i < length)
        for (int k = y; k < count; k += 16) sum += parts[k * length + i];
    sums[y][x] = sum;
    for (int half = 8; half > 0; half /= 2) {
        __syncthreads();
        if (y < half) sums[y][x] += sums[y + half][x];
    }
    if (y == 0 && i < length) out[i] = sums[0][x];
}

// y = erf(x).
extern "C" __global__ void error_function(const real *x, real *y, long long size) {
    const long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i < size) y[i] = erf(x[i]);
}

// y = x / (1 + exp(-x)).
extern "C" __global__ void silu(const real *x, real *y, long long size) {
    const long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i < size) y[i] = x[i] / (1 + exp(-x[i]));
}

// dx = g silu'(x) = g s (1 + x (1 - s)), s = 1 / (1 + exp(-x)).
extern "C" __global__ void silu_backward(const real *g, const real *x, real *dx, long long size) {
    const long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= size) return;
    const real s = 1 / (1 + exp(-x[i]));
    dx[i] = g[i] * s * (1 + x[i] * (1 - s));
}

// parts[block]: scale times the sum of (x - y)^2 over the block's share of the elements.
extern "C" __global__ void squared_error(const real *x, const real *y, real *parts, long long size, double scale) {
    __shared__ real sums[256];
    const long long first = size * blockIdx.x / gridDim.x, last = size * (blockIdx.x + 1) / gridDim.x;
    real sum = 0;
    for (long long i = first + threadIdx.x; i < last; i += 256) sum += (x[i] - y[i]) * (x[i] - y[i]);
    sums[threadIdx.x] = sum;
    for (int half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) parts[blockIdx.x] = sums[0] * (real)scale;
}

// dx = 2 scale g (x - y), with g a single number.
extern "C" __global__ void squared_error_backward(const real *x, const real *y, real *dx, long long size, const real *g,
                                                  double scale) {
    const long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i < size) dx[i] = (real)(2 * scale) * g[0] * (x[i] - y[i]);
}

// y (N, 2 half) = cos(t w_k), then sin(t w_k), with w_k = exp(-rate k / half). each: 1 if each sample has its own t,
// 0 if all have the same.
extern "C" __global__ void timestep_embedding(const double *t, int each, real *y, long long size, int half,
                                              double rate) {
    const long long i = blockIdx.x * 256ll + threadIdx.x, n = i / (2 * half);
    if (i >= size) return;
    const int k = i % (2 * half);
    const double angle = t[each * n] * exp(-rate * (k % half) / half);
    y[i] = (real)(k < half ? cos(angle) : sin(angle));
}

// The gradient of indexing, without atomics: out[row][d] = sum of g[i][d] over the i with index[i] == row, in the order
// of i. One thread for each element of out; negative indices count from the end.
extern "C" __global__ void add_rows(const real *g, const long long *index, real *out, long long count, long long rows,
                                    long long length) {
    const long long at = blockIdx.x * 256ll + threadIdx.x, row = at / length, d = at % length;
    if (row >= rows) return;
    real sum = 0;
    for (long long i = 0; i < count; i++)
        if (index[i] == row || index[i] + rows == row) sum += g[i * length + d];
    out[at] = sum;
}
