// Pooling over (N, H, W, C): a thread for each element of a sample's result, blocks along y for the samples.
// Window (p, q) has the taps h = p stride - padding + i dilation, i = 0, 1, ..., and w likewise. Backward, each
// pixel gathers from the windows that contain it, h = p stride - padding + i dilation solved for p: no atomics.

struct Pool {  // pairs are (vertical, horizontal)
    int samples, channels, size[2], out_size[2], kernel[2], stride[2], padding[2], dilation[2];
};

// The window whose tap number k lies on pixel `at` along an axis, or -1.
__device__ int window_of(const Pool &d, int axis, int at, int k) {
    const int shifted = at + d.padding[axis] - k * d.dilation[axis];
    if (shifted < 0 || shifted % d.stride[axis]) return -1;
    const int window = shifted / d.stride[axis];
    return window < d.out_size[axis] ? window : -1;
}

// x at pixel (h, w), channel c of the image that begins at x; `outside` beyond its edges.
__device__ real pixel(const real *x, const Pool &d, int h, int w, int c, real outside) {
    const bool inside = h >= 0 && h < d.size[0] && w >= 0 && w < d.size[1];
    return inside ? x[((long long)h * d.size[1] + w) * d.channels + c] : outside;
}

// Element i of an image (rows, columns, channels) -> (row, column, c).
__device__ void locate(int i, int columns, int channels, int &row, int &column, int &c) {
    c = i % channels;
    column = i / channels % columns;
    row = i / channels / columns;
}

#define MINUS_INFINITY (-1 / (real)0)

extern "C" __global__ void max_pool2d(const real *x, real *y, Pool d) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, out = d.out_size[0] * d.out_size[1] * d.channels;
    const int in = d.size[0] * d.size[1] * d.channels;
    if (i >= out) return;
    int p, q, c;
    locate(i, d.out_size[1], d.channels, p, q, c);
    for (int n = blockIdx.y; n < d.samples; n += gridDim.y) {
        real best = MINUS_INFINITY;
        for (int a = 0; a < d.kernel[0]; a++)
            for (int b = 0; b < d.kernel[1]; b++) {
                const real value = pixel(x + (long long)n * in, d, p * d.stride[0] - d.padding[0] + a * d.dilation[0],
                                         q * d.stride[1] - d.padding[1] + b * d.dilation[1], c, MINUS_INFINITY);
                if (value > best || value != value) best = value;  // NaN wins, and stays
            }
        y[(long long)n * out + i] = best;
    }
}

// dx: a window's gradient goes to the first of its taps (row by row) that equals its maximum y; to none if y is NaN.
extern "C" __global__ void max_pool2d_backward(const real *g, const real *x, const real *y, real *dx, Pool d) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, out = d.out_size[0] * d.out_size[1] * d.channels;
    const int in = d.size[0] * d.size[1] * d.channels;
    if (i >= in) return;
    int h, w, c;
    locate(i, d.size[1], d.channels, h, w, c);
    for (int n = blockIdx.y; n < d.samples; n += gridDim.y) {
        const real *image = x + (long long)n * in;
        const real mine = image[i];
        real sum = 0;
        for (int a = 0; a < d.kernel[0]; a++) {
            const int p = window_of(d, 0, h, a);
            for (int b = 0; p >= 0 && b < d.kernel[1]; b++) {
                const int q = window_of(d, 1, w, b);
                if (q < 0) continue;
                const long long window = (long long)n * out + ((long long)p * d.out_size[1] + q) * d.channels + c;
                bool first = mine == y[window];
                for (int tap = 0; first && tap < a * d.kernel[1] + b; tap++)  // those before this one
                    first = pixel(image, d, h + (tap / d.kernel[1] - a) * d.dilation[0],
                                  w + (tap % d.kernel[1] - b) * d.dilation[1], c, MINUS_INFINITY) != mine;
                if (first) sum += g[window];
            }
        }
        dx[(long long)n * in + i] = sum;
    }
}

// y = the sum over a window divided by counts[p, q]; zeros outside x.
extern "C" __global__ void avg_pool2d(const real *x, const real *counts, real *y, Pool d) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, out = d.out_size[0] * d.out_size[1] * d.channels;
    const int in = d.size[0] * d.size[1] * d.channels;
    if (i >= out) return;
    int p, q, c;
    locate(i, d.out_size[1], d.channels, p, q, c);
    for (int n = blockIdx.y; n < d.samples; n += gridDim.y) {
        real sum = 0;
        for (int a = 0; a < d.kernel[0]; a++)
            for (int b = 0; b < d.kernel[1]; b++)
                sum += pixel(x + (long long)n * in, d, p * d.stride[0] - d.padding[0] + a,
                             q * d.stride[1] - d.padding[1] + b, c, 0);
        y[(long long)n * out + i] = sum / counts[p * d.out_size[1] + q];
    }
}

extern "C" __global__ void avg_pool2d_backward(const real *g, const real *counts, real *dx, Pool d) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, out = d.out_size[0] * d.out_size[1] * d.channels;
    const int in = d.size[0] * d.size[1] * d.channels;
    if (i >= in) return;
    int h, w, c;
    locate(i, d.size[1], d.channels, h, w, c);
    for (int n = blockIdx.y; n < d.samples; n += gridDim.y) {
        real sum = 0;
        for (int a = 0; a < d.kernel[0]; a++)
            for (int b = 0; b < d.kernel[1]; b++) {
                const int p = window_of(d, 0, h, a), q = window_of(d, 1, w, b);
                if (p < 0 || q < 0) continue;
                const int window = p * d.out_size[1] + q;
                sum += g[(long long)n * out + (long long)window * d.channels + c] / counts[window];
            }
        dx[(long long)n * in + i] = sum;
    }
}
