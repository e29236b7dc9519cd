// Sums per channel, and bias with an activation. Channels lie side by side: element (pixel, c) of an image is
// x[pixel * channels + c].

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

enum Activation { NONE, RELU, SILU };

// y = f(x + bias[c]); bias may be NULL.
extern "C" __global__ void bias_activation(const real *x, const real *bias, real *y, long long size, int channels,
                                           int activation) {
    const long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= size) return;
    const real z = bias ? x[i] + bias[i % channels] : x[i];
    y[i] = activation == SILU ? z / (1 + exp(-z)) : activation == RELU && z < 0 ? 0 : z;
}

// dx = g f'(x + bias[c]), with silu'(z) = s (1 + z (1 - s)), s = 1 / (1 + exp(-z)).
extern "C" __global__ void bias_activation_backward(const real *g, const real *x, const real *bias, real *dx,
                                                    long long size, int channels, int activation) {
    const long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= size) return;
    const real z = bias ? x[i] + bias[i % channels] : x[i];
    const real s = 1 / (1 + exp(-z));
    dx[i] = g[i] * (activation == SILU ? s * (1 + z * (1 - s)) : activation == RELU && z <= 0 ? 0 : 1);
}
