// Convolution and its gradients as matrix products, whose operands are gathered from the images as they are needed
// ("implicit GEMM": no column matrix in memory). Memory is channels-last: x[n][h][w][c], y[n][p][q][o] and
// weight[o][i][j][c], where a group's o and c count from 0. Tap (i, j) of output pixel (p, q) lies on input pixel
//
//     h = p stride + i dilation - padding       (and w likewise; zeros outside x)
//
//     conv_forward          y[m][o]  = sum over k of x at (m, k)  weight[o][k]      m = (n, p, q), k = (i, j, c)
//     conv_input_gradient   dx[m][c] = sum over k of dy at (m, k) weight at (k, c)  m = (n, h, w), k = (i, j, o)
//     conv_weight_gradient  dw[o][k] = sum over m of dy[m][o]     x at (m, k)       m = (n, p, q), k = (i, j, c)
//
// Each is a product left * right' over `terms` (k, k and m), as tile.cuh computes it.

#include "tile.cuh"

struct Conv {  // pairs are (vertical, horizontal); channels are those of one group
    int samples, groups, channels, out_channels, size[2], out_size[2], kernel[2], stride[2], padding[2], dilation[2];
};

// ---- operands ----------------------------------------------------------------------------------------------------

// How one axis of a result is read from a source: result pixel a, tap t -> source pixel a step + origin + t advance.
struct Axis { int results, source, taps, step, origin, advance; };

// The next one of the terms (i, j, c) of some columns and channels.
struct Term {
    int i, j, c;

    __device__ Term(int k, int columns, int channels)
        : i(k / channels / columns), j(k / channels % columns), c(k % channels) {}

    __device__ void advance(int steps, int columns, int channels) {
        for (c += steps; c >= channels; c -= channels)
            if (++j == columns) j = 0, i++;
    }
};

#define OUTSIDE (-(1 << 30))  // of every image, whatever the tap

// Lines: pixels m = (n, a, b) of the result. Terms: (tap, tap, channel) of the source.
struct Pixels : AlongTerms<ROWS> {
    Axis y, x;
    int channels, pitch;  // channels to sum over; channels in memory
    bool together;
    Term term;
    const real *origin[COUNT];  // where each line's first tap lies (or would)
    int row[COUNT], column[COUNT];

    __device__ Pixels(const real *source, int samples, Axis y, Axis x, int channels, int pitch, int m0)
        : y(y), x(x), channels(channels), pitch(pitch),
          together(channels % 4 == 0 && aligned(source)),  // then so is pitch, a multiple of channels
          term(4 * four(), x.taps, channels) {
        for (int s = 0; s < COUNT; s++) {
            const int m = m0 + line(s), b = m % x.results, a = m / x.results % y.results, n = m / x.results / y.results;
            row[s] = a * y.step + y.origin;
            column[s] = b * x.step + x.origin;
            origin[s] = source + (((long long)n * y.source + row[s]) * x.source + column[s]) * pitch;
            if (n >= samples) row[s] = OUTSIDE;
        }
    }

    template <int N> __device__ void fetch_by(Four *out) {
        for (int e = 0; e < 4; e += N) {
            const int down = term.i * y.advance, across = term.j * x.advance;
            const int at = (down * x.source + across) * pitch + term.c;
            for (int s = 0; s < COUNT; s++) {
                const bool inside = (unsigned)(row[s] + down) < y.source && (unsigned)(column[s] + across) < x.source;
                const Pack<N> part = read<N>(origin[s] + at, inside && term.i < y.taps);
                for (int n = 0; n < N; n++) out[s].v[e + n] = part.v[n];
            }
            term.advance(e + N < 4 ? N : DEPTH - 4 + N, x.taps, channels);
        }
    }

    __device__ void fetch(Four *out) {
        if (together) fetch_by<4>(out);
        else fetch_by<1>(out);
    }
};

// Lines: input channels c, side by side in memory. Terms: (tap, tap, o), of some of the taps: i = first + t step.
struct Taps { int count, first, step; };

struct TransposedWeights : AlongLines<COLUMNS> {
    const real *weight;                     // of the first line
    int lines, pitch, channels, kernel[2];  // lines from here to the end; channels: of the terms
    Taps y, x;
    bool together;
    Term term;

    __device__ TransposedWeights(const real *weight, int first, int lines, int channels, const int *kernel, Taps y,
                                 Taps x)
        : weight(weight + first + line(0)), lines(lines - first - line(0)), pitch(lines), channels(channels),
          kernel{kernel[0], kernel[1]}, y(y), x(x), together(lines % 4 == 0 && channels % 4 == 0 && aligned(weight)),
          term(4 * four(), x.count, channels) {}

    // LINES lines at once, of TERMS terms of one tap.
    template <int LINES, int TERMS> __device__ void fetch_by(Four *out) {
        for (int e = 0; e < 4; e++) {
            const int row = y.first + term.i * y.step, column = x.first + term.j * x.step, o = term.c + e % TERMS;
            const real *from = weight + (long long)((o * kernel[0] + row) * kernel[1] + column) * pitch;
            for (int s = 0; s < COUNT; s += LINES) {
                const Pack<LINES> part = read<LINES>(from + s, term.i < y.count && s < lines);
                for (int n = 0; n < LINES; n++) out[s + n].v[e] = part.v[n];
            }
            if (e % TERMS == TERMS - 1) term.advance(e < 3 ? 1 : DEPTH - 4 + TERMS, x.count, channels);
        }
    }

    __device__ void fetch(Four *out) {
        if (together) fetch_by<COUNT, 4>(out);
        else fetch_by<1, 1>(out);
    }
};

// Lines: (i, j, c). Terms: output pixels m = (n, a, b).
struct TapsOfPixels : AlongLines<COLUMNS> {
    Axis y, x;
    int pitch, terms;  // terms from here to the end
    bool together;
    const real *image;                      // of the pixel that is next,
    int a, b;                               // with its row and column;
    int row[COUNT], column[COUNT], at[COUNT];  // each line's tap from there, and where it lies

    __device__ TapsOfPixels(const real *source, Axis y, Axis x, int channels, int pitch, int k0, int m0, int terms)
        : y(y), x(x), pitch(pitch), terms(terms - 4 * four()),
          together(channels % 4 == 0 && x.results % 4 == 0 && aligned(source)) {
        const int m = m0 + 4 * four();
        b = m % x.results;
        a = m / x.results % y.results;
        image = source + (long long)(m / x.results / y.results) * y.source * x.source * pitch;
        for (int s = 0; s < COUNT; s++) {
            const Term tap(k0 + line(s), x.taps, channels);
            row[s] = y.origin + tap.i * y.advance;
            column[s] = x.origin + tap.j * x.advance;
            at[s] = (row[s] * x.source + column[s]) * pitch + tap.c;
            if (tap.i >= y.taps) row[s] = OUTSIDE;
        }
    }

    __device__ void advance(int steps) {
        for (b += steps; b >= x.results; b -= x.results)
            if (++a == y.results) a = 0, image += (long long)y.source * x.source * pitch;
    }

    // LINES lines at once, of PIXELS pixels in one row.
    template <int LINES, int PIXELS> __device__ void fetch_by(Four *out) {
        for (int e = 0; e < 4; e++) {
            const int h = a * y.step, w = (b + e % PIXELS) * x.step;
            const real *pixel = image + (h * x.source + w) * pitch;
            for (int s = 0; s < COUNT; s += LINES) {
                const bool inside = (unsigned)(row[s] + h) < y.source && (unsigned)(column[s] + w) < x.source;
                const Pack<LINES> part = read<LINES>(pixel + at[s], inside && e < terms);
                for (int n = 0; n < LINES; n++) out[s + n].v[e] = part.v[n];
            }
            if (e % PIXELS == PIXELS - 1) advance(e < 3 ? 1 : DEPTH - 4 + PIXELS);
        }
        terms -= DEPTH;
    }

    __device__ void fetch(Four *out) {
        if (together) fetch_by<COUNT, 4>(out);
        else fetch_by<1, 1>(out);
    }
};

// ---- kernels -----------------------------------------------------------------------------------------------------

// y; bias may be NULL. Grid: (tiles, 1, groups), where tiles of the same pixels and other channels follow each other.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) conv_forward(
    const real *x, const real *weight, const real *bias, real *y, Conv d) {
    __shared__ Shared shared;
    const int tiles = (d.out_channels + COLUMNS - 1) / COLUMNS, group = blockIdx.z;
    const int m0 = blockIdx.x / tiles * ROWS, o0 = blockIdx.x % tiles * COLUMNS;
    const int terms = d.kernel[0] * d.kernel[1] * d.channels, pixels = d.samples * d.out_size[0] * d.out_size[1];
    const Axis vertical = {d.out_size[0], d.size[0], d.kernel[0], d.stride[0], -d.padding[0], d.dilation[0]};
    const Axis horizontal = {d.out_size[1], d.size[1], d.kernel[1], d.stride[1], -d.padding[1], d.dilation[1]};

    Pixels left(x + group * d.channels, d.samples, vertical, horizontal, d.channels, d.groups * d.channels, m0);
    Rows<COLUMNS> right(weight + (long long)group * d.out_channels * terms, o0, d.out_channels, terms, terms);
    Sums sums;
    multiply(left, right, terms, shared, sums);

    for (int r = 0; r < Sums::DOWN; r++)
        for (int c = 0; c < Sums::ALONG; c++) {
            const int m = m0 + sums.row(r), o = o0 + sums.column(c), channel = group * d.out_channels + o;
            if (m < pixels && o < d.out_channels)
                y[(long long)m * d.groups * d.out_channels + channel] = sums.at(r, c) + (bias ? bias[channel] : 0);
        }
}

// With a stride, input pixels h = a stride + phase of different phases see different taps: those i for which
// p = (h + padding - i dilation) / stride is a whole number. They are i = first + t step, t = 0, 1, ..., and
// p = a + (phase + padding - first dilation) / stride - t (step dilation / stride).
__device__ void taps_of_phase(const Conv &d, int axis, int phase, Taps &taps, Axis &read) {
    const int stride = d.stride[axis], dilation = d.dilation[axis], shifted = phase + d.padding[axis];
    taps.first = 0;
    taps.step = 1;
    while (taps.first < d.kernel[axis] && (shifted - taps.first * dilation) % stride) taps.first++;
    while (taps.step * dilation % stride) taps.step++;
    taps.count = (d.kernel[axis] - taps.first + taps.step - 1) / taps.step;
    const int results = (d.size[axis] - phase + stride - 1) / stride;
    const int origin = (shifted - taps.first * dilation) / stride;
    read = {results, d.out_size[axis], taps.count, 1, origin, -(taps.step * dilation / stride)};
}

// dx; with a bias, the forward of a transposed convolution. Grid: (tiles, 1, groups * phases).
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) conv_input_gradient(
    const real *dy, const real *weight, const real *bias, real *dx, Conv d) {
    __shared__ Shared shared;
    const int tiles = (d.channels + COLUMNS - 1) / COLUMNS;
    const int m0 = blockIdx.x / tiles * ROWS, c0 = blockIdx.x % tiles * COLUMNS;
    const int phase_w = blockIdx.z % d.stride[1], phase_h = blockIdx.z / d.stride[1] % d.stride[0];
    const int group = blockIdx.z / d.stride[1] / d.stride[0];
    Taps taps_h, taps_w;
    Axis vertical, horizontal;
    taps_of_phase(d, 0, phase_h, taps_h, vertical);
    taps_of_phase(d, 1, phase_w, taps_w, horizontal);
    const int pixels = d.samples * vertical.results * horizontal.results;
    if (m0 >= pixels) return;  // this phase has fewer pixels than the first

    const int terms = taps_h.count * taps_w.count * d.out_channels;
    Sums sums;
    if (terms) {  // there are phases without taps
        const long long weights = (long long)d.out_channels * d.kernel[0] * d.kernel[1] * d.channels;
        Pixels left(dy + group * d.out_channels, d.samples, vertical, horizontal, d.out_channels,
                    d.groups * d.out_channels, m0);
        TransposedWeights right(weight + group * weights, c0, d.channels, d.out_channels, d.kernel, taps_h, taps_w);
        multiply(left, right, terms, shared, sums);
    }

    for (int r = 0; r < Sums::DOWN; r++) {
        const int m = m0 + sums.row(r), b = m % horizontal.results, a = m / horizontal.results % vertical.results;
        const int n = m / horizontal.results / vertical.results;
        const int h = a * d.stride[0] + phase_h, w = b * d.stride[1] + phase_w;
        const long long pixel = ((long long)n * d.size[0] + h) * d.size[1] + w;
        for (int e = 0; e < Sums::ALONG; e++) {
            const int c = c0 + sums.column(e), channel = group * d.channels + c;
            if (m < pixels && c < d.channels)
                dx[pixel * d.groups * d.channels + channel] = sums.at(r, e) + (bias ? bias[channel] : 0);
        }
    }
}

// parts[slice]: dw, and behind it db = the sums of dy, over the slice's share of the pixels.
// Grid: (tiles, slices, groups).
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) conv_weight_gradient(
    const real *dy, const real *x, real *parts, Conv d) {
    __shared__ Shared shared;
    const int terms = d.kernel[0] * d.kernel[1] * d.channels, channels = d.groups * d.out_channels, group = blockIdx.z;
    const int tiles = (terms + COLUMNS - 1) / COLUMNS;
    const int o0 = blockIdx.x / tiles * ROWS, k0 = blockIdx.x % tiles * COLUMNS;
    const Slice slice((long long)d.samples * d.out_size[0] * d.out_size[1]);
    const Axis vertical = {d.out_size[0], d.size[0], d.kernel[0], d.stride[0], -d.padding[0], d.dilation[0]};
    const Axis horizontal = {d.out_size[1], d.size[1], d.kernel[1], d.stride[1], -d.padding[1], d.dilation[1]};

    SummedColumns<ROWS> left(dy + slice.first * channels + group * d.out_channels, o0, d.out_channels, channels,
                             slice.terms);
    TapsOfPixels right(x + group * d.channels, vertical, horizontal, d.channels, d.groups * d.channels, k0,
                       (int)slice.first, slice.terms);
    Sums sums;
    multiply(left, right, slice.terms, shared, sums);

    const int line0 = group * d.out_channels;
    parts += (long long)blockIdx.y * channels * (terms + 1);
    store(sums, left, shared, o0, k0, d.out_channels, terms, parts + (long long)line0 * terms,
          parts + (long long)channels * terms + line0);
}
