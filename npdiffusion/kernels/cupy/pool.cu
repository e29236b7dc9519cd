// Pooling over (N, H, W, C): a thread for four neighbouring channels of a pixel of a sample's result, blocks along y
// for the samples. Window (p, q) has the taps h = p stride - padding + i dilation, i = 0, 1, ..., and w likewise.
// Backward, each pixel gathers from the windows that contain it, h = p stride - padding + i dilation solved for p: no
// atomics.

struct Pool {  // pairs are (vertical, horizontal)
    int samples, channels, size[2], out_size[2], kernel[2], stride[2], padding[2], dilation[2];
};

struct alignas(16) Four { real v[4]; };

__device__ bool at_once(const real *p, int count) { return count >= 4 && (size_t)p % 16 == 0; }

__device__ Four read(const real *from, int count) {
    if (at_once(from, count)) return *(const Four *)from;
    Four four = {};
    for (int e = 0; e < 4; e++)
        if (e < count) four.v[e] = from[e];
    return four;
}

__device__ void write(real *to, const Four &four, int count) {
    if (at_once(to, count)) *(Four *)to = four;
    else
        for (int e = 0; e < 4; e++)
            if (e < count) to[e] = four.v[e];
}

// What a thread works on: `count` channels from c on, of pixel (row, column) of an image of so many columns.
struct Place {
    int row, column, c, count;
    long long at, in, out;  // where in the image; numbers in a sample of x and of y

    __device__ Place(const Pool &d, int columns) {
        in = (long long)d.size[0] * d.size[1] * d.channels;
        out = (long long)d.out_size[0] * d.out_size[1] * d.channels;
        const int i = blockIdx.x * blockDim.x + threadIdx.x, fours = (d.channels + 3) / 4, pixel = i / fours;
        c = 4 * (i % fours);
        count = d.channels - c;
        row = pixel / columns;
        column = pixel % columns;
        at = (long long)pixel * d.channels + c;
    }
};

// The window whose tap number k lies on pixel `at` along an axis, or -1.
__device__ int window_of(const Pool &d, int axis, int at, int k) {
    const int shifted = at + d.padding[axis] - k * d.dilation[axis], window = shifted / d.stride[axis];
    return shifted >= 0 && window * d.stride[axis] == shifted && window < d.out_size[axis] ? window : -1;
}

// Of pixel (h, w) of an image; `outside` beyond its edges.
__device__ Four pixel(const real *image, const Pool &d, int h, int w, const Place &place, real outside) {
    const bool inside = h >= 0 && h < d.size[0] && w >= 0 && w < d.size[1];
    return inside ? read(image + ((long long)h * d.size[1] + w) * d.channels + place.c, place.count)
                  : Four{outside, outside, outside, outside};
}

#define MINUS_INFINITY (-1 / (real)0)

extern "C" __global__ void max_pool2d(const real *x, real *y, Pool d) {
    const Place place(d, d.out_size[1]);
    if (place.row >= d.out_size[0]) return;
    const int top = place.row * d.stride[0] - d.padding[0], left = place.column * d.stride[1] - d.padding[1];
    for (int n = blockIdx.y; n < d.samples; n += gridDim.y) {
        Four best = {MINUS_INFINITY, MINUS_INFINITY, MINUS_INFINITY, MINUS_INFINITY};
        for (int a = 0; a < d.kernel[0]; a++)
            for (int b = 0; b < d.kernel[1]; b++) {
                const int h = top + a * d.dilation[0], w = left + b * d.dilation[1];
                const Four four = pixel(x + n * place.in, d, h, w, place, MINUS_INFINITY);
                for (int e = 0; e < 4; e++)  // NaN wins, and stays
                    if (four.v[e] > best.v[e] || four.v[e] != four.v[e]) best.v[e] = four.v[e];
            }
        write(y + n * place.out + place.at, best, place.count);
    }
}

// dx: a window's gradient goes to the first of its taps (row by row) that equals its maximum y; to none if y is NaN.
extern "C" __global__ void max_pool2d_backward(const real *g, const real *x, const real *y, real *dx, Pool d) {
    const Place place(d, d.size[1]);
    if (place.row >= d.size[0]) return;
    for (int n = blockIdx.y; n < d.samples; n += gridDim.y) {
        const real *image = x + n * place.in;
        const Four mine = read(image + place.at, place.count);
        Four sum = {};
        for (int a = 0; a < d.kernel[0]; a++) {
            const int p = window_of(d, 0, place.row, a);
            for (int b = 0; p >= 0 && b < d.kernel[1]; b++) {
                const int q = window_of(d, 1, place.column, b);
                if (q < 0) continue;
                const long long window = n * place.out + ((long long)p * d.out_size[1] + q) * d.channels + place.c;
                const Four best = read(y + window, place.count), slope = read(g + window, place.count);
                bool first[4];
                for (int e = 0; e < 4; e++) first[e] = mine.v[e] == best.v[e];
                for (int tap = 0; tap < a * d.kernel[1] + b; tap++) {  // those before this one
                    const int h = place.row + (tap / d.kernel[1] - a) * d.dilation[0];
                    const int w = place.column + (tap % d.kernel[1] - b) * d.dilation[1];
                    const Four four = pixel(image, d, h, w, place, MINUS_INFINITY);
                    for (int e = 0; e < 4; e++) first[e] = first[e] && four.v[e] != mine.v[e];
                }
                for (int e = 0; e < 4; e++)
                    if (first[e]) sum.v[e] += slope.v[e];
            }
        }
        write(dx + n * place.in + place.at, sum, place.count);
    }
}

// y = the sum over a window divided by counts[p, q]; zeros outside x.
extern "C" __global__ void avg_pool2d(const real *x, const real *counts, real *y, Pool d) {
    const Place place(d, d.out_size[1]);
    if (place.row >= d.out_size[0]) return;
    const int top = place.row * d.stride[0] - d.padding[0], left = place.column * d.stride[1] - d.padding[1];
    const real count = counts[place.row * d.out_size[1] + place.column];
    for (int n = blockIdx.y; n < d.samples; n += gridDim.y) {
        Four sum = {};
        for (int h = top; h < top + d.kernel[0]; h++)
            for (int w = left; w < left + d.kernel[1]; w++) {
                const Four four = pixel(x + n * place.in, d, h, w, place, 0);
                for (int e = 0; e < 4; e++) sum.v[e] += four.v[e];
            }
        for (int e = 0; e < 4; e++) sum.v[e] /= count;
        write(y + n * place.out + place.at, sum, place.count);
    }
}

extern "C" __global__ void avg_pool2d_backward(const real *g, const real *counts, real *dx, Pool d) {
    const Place place(d, d.size[1]);
    if (place.row >= d.size[0]) return;
    for (int n = blockIdx.y; n < d.samples; n += gridDim.y) {
        Four sum = {};
        for (int a = 0; a < d.kernel[0]; a++)
            for (int b = 0; b < d.kernel[1]; b++) {
                const int p = window_of(d, 0, place.row, a), q = window_of(d, 1, place.column, b);
                if (p < 0 || q < 0) continue;
                const int window = p * d.out_size[1] + q;
                const Four slope = read(g + n * place.out + (long long)window * d.channels + place.c, place.count);
                for (int e = 0; e < 4; e++) sum.v[e] += slope.v[e] / counts[window];
            }
        write(dx + n * place.in + place.at, sum, place.count);
    }
}
