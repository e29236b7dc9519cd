// Group normalisation, alone or fused with SiLU: one block of 256 threads for each sample and group.
//
// Images are (N, H*W, C): channel c of pixel p of sample n is x[(n * pixels + p) * channels + c]. The block of
// sample n and group k has the channels k * width to (k + 1) * width - 1. Its threads form rows of `columns`
// threads, one for each of these channels (or every columns-th, if there are more than 256); a row takes every
// rows-th pixel. So neighbouring threads read neighbouring memory, and a thread keeps to its channel.

#define THREADS 256

struct Norm {
    int pixels, channels, width, silu;  // width: channels of a group
    double eps;
};

struct Block {
    int columns, rows, column, row, c0;  // c0: the group's first channel
    long long sample, start;             // start: of the sample's element (pixel 0, channel 0)
};

__device__ Block block_of(const Norm &d) {
    Block b;
    b.columns = d.width < THREADS ? d.width : THREADS;
    b.rows = THREADS / b.columns;
    b.column = threadIdx.x % b.columns;
    b.row = threadIdx.x / b.columns;  // a row >= rows is left over, and idle
    const int groups = d.channels / d.width;
    b.c0 = blockIdx.x % groups * d.width;
    b.sample = blockIdx.x / groups;
    b.start = b.sample * d.pixels * d.channels;
    return b;
}

// What follows the normalisation of channel c of a sample: xhat -> xhat weight + bias -> (...) (1 + scale) + shift,
// which is again one factor and one summand. scale_shift, (N, 2, C), may be NULL.
struct Affine { real weight, bias, scale, factor, summand; };

__device__ Affine affine_of(const real *weight, const real *bias, const real *scale_shift, long long sample, int c,
                            int channels) {
    Affine a = {weight[c], bias[c], 1, weight[c], bias[c]};
    if (scale_shift) {
        scale_shift += 2 * sample * channels + c;
        a.scale = 1 + scale_shift[0];
        a.factor = a.weight * a.scale;
        a.summand = a.bias * a.scale + scale_shift[channels];
    }
    return a;
}

// The sum of all threads' values, given to all of them. Always added in the same order.
__device__ real sum_over_block(real value, real *shared) {
    for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
    __syncthreads();  // what was in shared is no longer needed
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
    __syncthreads();
    real sum = 0;
    for (int warp = 0; warp < THREADS / 32; warp++) sum += shared[warp];
    return sum;
}

// The sum of f(i) over all elements x[i] of the group, given to all threads.
template <class F> __device__ real sum_over_group(const Block &b, const Norm &d, real *shared, F f) {
    real sum = 0;
    if (b.row < b.rows)
        for (int c = b.column; c < d.width; c += b.columns)
            for (int p = b.row; p < d.pixels; p += b.rows) sum += f(b.start + (long long)p * d.channels + b.c0 + c);
    return sum_over_block(sum, shared);
}

// The sum of a column of threads, given to its thread in row 0.
__device__ real sum_over_rows(real value, const Block &b, real *shared) {
    __syncthreads();
    shared[threadIdx.x] = value;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (b.row < half && b.row + half < b.rows) shared[threadIdx.x] += shared[threadIdx.x + half * b.columns];
    }
    return shared[threadIdx.x];
}

// y = xhat factor + summand, and y sigmoid(y) if silu, with xhat = (x - mean) rstd, rstd = 1 / sqrt(variance + eps).
// Grid: samples * groups. mean and rstd are given to each channel of the group: (N, C).
extern "C" __global__ void __launch_bounds__(THREADS) group_norm(
    const real *x, const real *weight, const real *bias, const real *scale_shift, real *y, real *mean, real *rstd,
    Norm d) {
    __shared__ real shared[THREADS];
    const Block b = block_of(d);
    const int pixels = d.pixels, channels = d.channels, width = d.width;
    const real count = (real)pixels * width;
    const real mu = sum_over_group(b, d, shared, [=](long long i) { return x[i]; }) / count;
    // centred first: E x^2 - mu^2 would lose digits where mu is large
    const real squares = sum_over_group(b, d, shared, [=](long long i) { return (x[i] - mu) * (x[i] - mu); });
    const real r = 1 / sqrt(squares / count + (real)d.eps);

    if (b.row >= b.rows) return;
    for (int c = b.c0 + b.column; c < b.c0 + width; c += b.columns) {
        const Affine a = affine_of(weight, bias, scale_shift, b.sample, c, channels);
        const real slope = a.factor * r, level = a.summand - mu * slope;
        for (int p = b.row; p < pixels; p += b.rows) {
            const long long i = b.start + (long long)p * channels + c;
            const real z = x[i] * slope + level;
            y[i] = d.silu ? z / (1 + exp(-z)) : z;
        }
        if (b.row == 0) {
            mean[b.sample * channels + c] = mu;
            rstd[b.sample * channels + c] = r;
        }
    }
}

// The gradient behind the SiLU: g silu'(z) with silu'(z) = s (1 + z (1 - s)), s = sigmoid(z), or g itself.
__device__ real before_silu(real g, real z, int silu) {
    const real s = 1 / (1 + exp(-z));
    return silu ? g * s * (1 + z * (1 - s)) : g;
}

// With d = the gradient before the SiLU and means over the group:
// dx = rstd (d factor - mean(d factor) - xhat mean(d factor xhat)). With a sample's sums over the pixels A = sum d xhat
// and B = sum d: parts (N, 2, C) = A (1 + scale) and B (1 + scale), whose sums over the samples are dweight and dbias;
// dscale_shift = A weight + B bias and B. Grid: samples * groups.
extern "C" __global__ void __launch_bounds__(THREADS) group_norm_backward(
    const real *g, const real *x, const real *mean, const real *rstd, const real *weight, const real *bias,
    const real *scale_shift, real *dx, real *parts, real *dscale_shift, Norm settings) {
    __shared__ real shared[THREADS];
    const Block b = block_of(settings);
    const int pixels = settings.pixels, channels = settings.channels, width = settings.width;
    const real mu = mean[b.sample * channels + b.c0], r = rstd[b.sample * channels + b.c0];

    real d_sum = 0, along_sum = 0;  // sums over the group of d factor and d factor xhat
    for (int start = 0; start < width; start += b.columns) {
        const int c = b.c0 + start + b.column;
        const bool active = b.row < b.rows && start + b.column < width;
        real d_part = 0, along_part = 0;
        Affine a;
        if (active) {
            a = affine_of(weight, bias, scale_shift, b.sample, c, channels);
            for (int p = b.row; p < pixels; p += b.rows) {
                const long long i = b.start + (long long)p * channels + c;
                const real xhat = (x[i] - mu) * r;
                const real d = before_silu(g[i], xhat * a.factor + a.summand, settings.silu);
                d_part += d;
                along_part += d * xhat;
            }
        }
        d_part = sum_over_rows(d_part, b, shared);
        along_part = sum_over_rows(along_part, b, shared);
        if (active && b.row == 0) {
            const long long first = 2 * b.sample * channels + c, second = first + channels;
            parts[first] = along_part * a.scale;
            parts[second] = d_part * a.scale;
            if (dscale_shift) {
                dscale_shift[first] = along_part * a.weight + d_part * a.bias;
                dscale_shift[second] = d_part;
            }
            d_sum += d_part * a.factor;
            along_sum += along_part * a.factor;
        }
    }
    const real count = (real)pixels * width;
    const real d_mean = sum_over_block(d_sum, shared) / count;
    const real along_mean = sum_over_block(along_sum, shared) / count;

    if (b.row >= b.rows) return;
    for (int c = b.c0 + b.column; c < b.c0 + width; c += b.columns) {
        const Affine a = affine_of(weight, bias, scale_shift, b.sample, c, channels);
        for (int p = b.row; p < pixels; p += b.rows) {
            const long long i = b.start + (long long)p * channels + c;
            const real xhat = (x[i] - mu) * r;
            const real d = before_silu(g[i], xhat * a.factor + a.summand, settings.silu);
            dx[i] = r * (d * a.factor - d_mean - xhat * along_mean);
        }
    }
}
