// Sums per channel, activations, and what else goes element by element. Channels lie side by side: element
// (pixel, c) of an image is x[pixel * channels + c].

// A block of 256 threads forms rows of `columns` threads, one for each channel (or for every columns-th, if
// there are more channels than threads): neighbouring threads read neighbouring channels.
// Block b sums its share of the pixels into parts[b][c].
extern "C" __global__ void channel_sums(const real *x, real *parts, long long pixels, int channels) {
    __shared__ real sums[256];
    const int columns = channels < 256 ? channels : 256, rows = 256 / columns;
    const int column = threadIdx.x % columns, row = threadIdx.x / columns;
    const long long first = pixels * blockIdx.x / gridDim.x, last = pixels * (blockIdx.x + 1) / gridDim.x;

    for (int start = 0; start < channels; start += columns) {
        const int c = start + column;
        real sum = 0;
        if (row < rows && c < channels)
            for (long long p = first + row; p < last; p += rows) sum += x[p * channels + c];
        sums[threadIdx.x] = sum;
        for (int half = 128; half > 0; half /= 2) {  // row r takes row r + half: always the same order
            __syncthreads();
            if (row < half && row + half < rows) sums[threadIdx.x] += sums[threadIdx.x + half * columns];
        }
        if (row == 0 && c < channels) parts[(long long)blockIdx.x * channels + c] = sums[column];
        __syncthreads();
    }
}

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

// y = max(x, 0); NaN stays.
extern "C" __global__ void relu(const real *x, real *y, long long size) {
    const long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i < size) y[i] = x[i] < 0 ? 0 : x[i];
}

extern "C" __global__ void relu_backward(const real *g, const real *x, real *dx, long long size) {
    const long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i < size) dx[i] = x[i] > 0 ? g[i] : 0;
}

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
extern "C" __global__ void timestep_embedding(const long long *t, int each, real *y, long long size, int half,
                                              double rate) {
    const long long i = blockIdx.x * 256ll + threadIdx.x, n = i / (2 * half);
    if (i >= size) return;
    const int k = i % (2 * half);
    const double angle = t[each * n] * exp(-rate * (k % half) / half);
    y[i] = (real)(k < half ? cos(angle) : sin(angle));
}
