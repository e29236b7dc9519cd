// Convolution and its gradients as matrix products, whose operands are gathered from the images as they are needed
// ("implicit GEMM": no column matrix in memory). Memory is channels-last: x[n][h][w][c], y[n][p][q][o] and
// weight[o][i][j][c], where a group's o and c count from 0. Tap (i, j) of output pixel (p, q) lies on input pixel
//
//     h = p stride + i dilation - corner        (and w likewise; zeros outside x)
//
//     conv_forward          y[m][o]  = sum over k of x at (m, k)  weight[o][k]      m = (n, p, q), k = (i, j, c)
//     conv_input_gradient   dx[m][c] = sum over k of dy at (m, k) weight at (k, c)  m = (n, h, w), k = (i, j, o)
//     conv_weight_gradient  dw[o][k] = sum over m of dy[m][o]     x at (m, k)       m = (n, p, q), k = (i, j, c)
//                           db[o]    = sum over m of dy[m][o], for the gradient of a bias
//
// Each is a product left * right' over `terms` (k, k and m). A block of 128 threads computes a tile of it, ROWS
// lines of the left operand times COLUMNS lines of the right one, DEPTH terms at a time: while it multiplies those
// that lie in shared memory, the next ones are on their way from global memory into registers. Its 4 warps form a
// grid of WARPS_DOWN x WARPS_ACROSS, and each computes 32 x 32 results, 32 for each of its threads.
// With TF32 the products are the tensor cores', of operands rounded to 10 bits of mantissa; sums are float32.

#define ROWS (32 * WARPS_DOWN)
#define COLUMNS (32 * WARPS_ACROSS)
#define DEPTH 16
#define THREADS 128

struct Conv {  // pairs are (vertical, horizontal); channels are those of one group
    int samples, groups, channels, out_channels, size[2], out_size[2], kernel[2], stride[2], corner[2], dilation[2];
};

struct alignas(16) Four { real v[4]; };

// Four terms of a line lie side by side in shared memory, and a line's four Fours, in changing order: threads that
// read neighbouring lines at the same terms, or write them, then use different banks of the memory.
__device__ int place(int line, int four) { return 4 * line + (four ^ (line / 2 % 4)); }

struct Shared { Four left[2][4 * ROWS], right[2][4 * COLUMNS]; };

__device__ bool aligned(const void *p) { return (size_t)p % 16 == 0; }

#if TF32 && !defined(CUDA_ON_CPU)
// x rounded to TF32: 10 bits of mantissa, ties away from zero.
__device__ float to_tf32(float x) {
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return __uint_as_float(bits);
}

// d += a b on the tensor cores; all threads of a warp together (see Sums).
__device__ void mma_16x8x8(float *d, float a0, float a1, float a2, float a3, float b0, float b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)), "r"(__float_as_uint(a3)),
          "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}
#endif

// ---- who fetches what: a thread fetches COUNT Fours of an operand's tile, number s is four(s) of line(s) ----------

template <int LINES> struct AlongTerms {  // neighbouring threads take neighbouring terms
    static const int COUNT = LINES * 4 / THREADS;
    __device__ static int line(int s) { return threadIdx.x / 4 + s * (THREADS / 4); }
    __device__ static int four(int s) { return threadIdx.x % 4; }
};

template <int LINES> struct AlongLines {  // neighbouring threads take neighbouring lines
    static const int COUNT = LINES * 4 / THREADS;
    __device__ static int line(int s) { return (threadIdx.x + s * THREADS) % LINES; }
    __device__ static int four(int s) { return (threadIdx.x + s * THREADS) / LINES; }
};

// ---- operands: fetch(k, fours) gives the thread's Fours of the terms k to k + DEPTH - 1, zeros outside -----------

// How one axis of a result is read from a source: result pixel a, tap t -> source pixel a step + origin + t advance.
struct Axis { int results, source, taps, step, origin, advance; };

// Lines: pixels m = (n, a, b) of the result. Terms: (tap, tap, channel) of the source.
struct Pixels : AlongTerms<ROWS> {
    Axis y, x;
    int channels, pitch;  // channels to sum over; channels in memory
    bool fours;           // four terms lie side by side
    const real *image[COUNT];
    int row[COUNT], column[COUNT];

    __device__ Pixels(const real *source, int samples, Axis y, Axis x, int channels, int pitch, int m0)
        : y(y), x(x), channels(channels), pitch(pitch) {
        fours = channels % 4 == 0 && aligned(source);  // then so is pitch, a multiple of channels
        for (int s = 0; s < COUNT; s++) {
            const int m = m0 + line(s), b = m % x.results, a = m / x.results % y.results, n = m / x.results / y.results;
            image[s] = source + (long long)n * y.source * x.source * pitch;
            row[s] = n < samples ? a * y.step + y.origin : -(1 << 30);  // beyond the last pixel: outside
            column[s] = b * x.step + x.origin;
        }
    }

    __device__ bool inside(int row, int column) const {
        return row >= 0 && row < y.source && column >= 0 && column < x.source;
    }

    __device__ void fetch(int k, Four *out) const {
        k += 4 * four(0);  // the same for all s
        int tap = k / channels, c = k % channels, i = tap / x.taps, j = tap % x.taps;
        if (fours) {
            for (int s = 0; s < COUNT; s++) {
                const int h = row[s] + i * y.advance, w = column[s] + j * x.advance;
                out[s] = Four();
                if (i < y.taps && inside(h, w)) out[s] = *(const Four *)(image[s] + (h * x.source + w) * pitch + c);
            }
            return;
        }
        for (int e = 0; e < 4; e++) {
            for (int s = 0; s < COUNT; s++) {
                const int h = row[s] + i * y.advance, w = column[s] + j * x.advance;
                out[s].v[e] = i < y.taps && inside(h, w) ? image[s][(h * x.source + w) * pitch + c] : 0;
            }
            if (++c == channels) {
                c = 0;
                if (++j == x.taps) j = 0, i++;
            }
        }
    }
};

// Lines: output channels o. Terms: (i, j, c), side by side in memory.
struct Weights : AlongTerms<COLUMNS> {
    const real *weight;
    int first, lines, terms;

    __device__ Weights(const real *weight, int first, int lines, int terms)
        : weight(weight), first(first), lines(lines), terms(terms) {}

    __device__ void fetch(int k, Four *out) const {
        k += 4 * four(0);
        const bool fours = terms % 4 == 0 && aligned(weight);
        for (int s = 0; s < COUNT; s++) {
            const int o = first + line(s);
            const real *from = weight + (long long)o * terms + k;
            out[s] = Four();
            if (o < lines && k < terms) {
                if (fours) out[s] = *(const Four *)from;
                else for (int e = 0; e < 4; e++) out[s].v[e] = k + e < terms ? from[e] : 0;
            }
        }
    }
};

// Lines: input channels c, side by side in memory. Terms: (tap, tap, o), of some of the taps: i = first + t step.
struct Taps { int count, first, step; };

struct TransposedWeights : AlongLines<COLUMNS> {
    const real *weight;
    int first, lines, channels, kernel[2];  // channels: of the terms
    Taps y, x;

    __device__ TransposedWeights(const real *weight, int first, int lines, int channels, const int *kernel, Taps y,
                                 Taps x)
        : weight(weight), first(first), lines(lines), channels(channels), kernel{kernel[0], kernel[1]}, y(y), x(x) {}

    __device__ void fetch(int k0, Four *out) const {
        for (int s = 0; s < COUNT; s++) {
            const int k = k0 + 4 * four(s), c = first + line(s);
            int tap = k / channels, o = k % channels, i = tap / x.count, j = tap % x.count;
            for (int e = 0; e < 4; e++) {
                const int row = y.first + i * y.step, column = x.first + j * x.step;
                const long long at = (((long long)o * kernel[0] + row) * kernel[1] + column) * lines + c;
                out[s].v[e] = i < y.count && c < lines ? weight[at] : 0;
                if (++o == channels) {
                    o = 0;
                    if (++j == x.count) j = 0, i++;
                }
            }
        }
    }
};

// Lines: channels o, side by side in memory. Terms: pixels up to `last`.
struct PixelsAsTerms : AlongLines<ROWS> {
    const real *y;
    int first, lines, pitch, last;
    real sums[COUNT];  // of all that the thread has fetched of line(s)

    __device__ PixelsAsTerms(const real *y, int first, int lines, int pitch, int last)
        : y(y), first(first), lines(lines), pitch(pitch), last(last), sums() {}

    __device__ void fetch(int m0, Four *out) {
        for (int s = 0; s < COUNT; s++) {
            const int m = m0 + 4 * four(s), o = first + line(s);
            for (int e = 0; e < 4; e++) {
                out[s].v[e] = o < lines && m + e < last ? y[(long long)(m + e) * pitch + o] : 0;
                sums[s] += out[s].v[e];
            }
        }
    }
};

// Lines: (i, j, c). Terms: output pixels m = (n, p, q) up to `last`, fetched in order from the first on.
struct TapsOfPixels : AlongLines<COLUMNS> {
    Axis y, x;
    int pitch, last;
    const real *image[COUNT];               // of the pixel that is next,
    int a[COUNT], b[COUNT];                 // with its row and column,
    int row[COUNT], column[COUNT], c[COUNT];  // the line's tap from there, and channel

    __device__ TapsOfPixels(const real *source, Axis y, Axis x, int channels, int pitch, int k0, int m0, int last)
        : y(y), x(x), pitch(pitch), last(last) {
        for (int s = 0; s < COUNT; s++) {
            const int k = k0 + line(s), tap = k / channels, m = m0 + 4 * four(s);
            c[s] = k % channels;
            row[s] = tap / x.taps < y.taps ? y.origin + tap / x.taps * y.advance : -(1 << 30);
            column[s] = x.origin + tap % x.taps * x.advance;
            b[s] = m % x.results;
            a[s] = m / x.results % y.results;
            image[s] = source + (long long)(m / x.results / y.results) * y.source * x.source * pitch;
        }
    }

    __device__ void advance(int s, int steps) {
        b[s] += steps;
        while (b[s] >= x.results) {
            b[s] -= x.results;
            if (++a[s] == y.results) a[s] = 0, image[s] += (long long)y.source * x.source * pitch;
        }
    }

    __device__ void fetch(int m0, Four *out) {
        for (int s = 0; s < COUNT; s++)
            for (int e = 0; e < 4; e++) {
                const int h = row[s] + a[s] * y.step, w = column[s] + b[s] * x.step;
                const bool inside = h >= 0 && h < y.source && w >= 0 && w < x.source;
                out[s].v[e] = inside && m0 + 4 * four(s) + e < last ? image[s][(h * x.source + w) * pitch + c[s]] : 0;
                advance(s, e < 3 ? 1 : DEPTH - 3);
            }
    }
};

// ---- products ----------------------------------------------------------------------------------------------------

// The 32 results of a thread, of the 32 x 32 of its warp: those of row(r) and column(c) of the block's tile,
// r < DOWN and c < ALONG.
struct Sums {
    real value[32];
    int down, across, lane;  // where the warp's results begin

    __device__ Sums() : value() {
        down = threadIdx.x / 32 / WARPS_ACROSS * 32;
        across = threadIdx.x / 32 % WARPS_ACROSS * 32;
        lane = threadIdx.x % 32;
    }

#if TF32
    // The tensor cores compute 16 x 8 results from 8 terms, d = a b + d, with the elements spread over the warp so
    // (PTX ISA, mma.m16n8k8 with .tf32), for group = lane / 4 and member = lane % 4:
    //     a[i]: row group + 8 (i % 2), term member + 4 (i / 2);   b[i]: term member + 4 i, column group;
    //     d[i]: row group + 8 (i / 2), column 2 member + i % 2.
    // The order of terms is free, if it is the same in a and b. A thread has four side by side in each line: it
    // gives the first two as terms `member` and `member + 4` of one product, the other two as those of the next.
    static const int DOWN = 4, ALONG = 8;
    __device__ int row(int r) const { return down + 8 * r + lane / 4; }
    __device__ int column(int c) const { return across + 8 * (c / 2) + 2 * (lane % 4) + c % 2; }
    __device__ real at(int r, int c) const { return value[16 * (r / 2) + 4 * (c / 2) + 2 * (r % 2) + c % 2]; }

    __device__ void add(const Four *left, const Four *right) {
        const int group = lane / 4, member = lane % 4;
        Four low[2], high[2];  // rows group and group + 8 of two bands of 16 rows
        for (int i = 0; i < 2; i++) {
            low[i] = left[place(down + 16 * i + group, member)];
            high[i] = left[place(down + 16 * i + group + 8, member)];
        }
        for (int j = 0; j < 4; j++) {
            const Four b = right[place(across + 8 * j + group, member)];
            for (int i = 0; i < 2; i++)
                for (int t = 0; t < 4; t += 2)
                    mma_16x8x8(value + 16 * i + 4 * j, low[i].v[t], high[i].v[t], low[i].v[t + 1], high[i].v[t + 1],
                               b.v[t], b.v[t + 1]);
        }
    }
#else
    static const int DOWN = 8, ALONG = 4;
    __device__ int row(int r) const { return down + 4 * r + lane / 8; }
    __device__ int column(int c) const { return across + 8 * c + lane % 8; }
    __device__ real at(int r, int c) const { return value[4 * r + c]; }

    __device__ void add(const Four *left, const Four *right) {
        for (int four = 0; four < 4; four++) {
            Four b[4];
            for (int j = 0; j < 4; j++) b[j] = right[place(column(j), four)];
            for (int i = 0; i < 8; i++) {
                const Four a = left[place(row(i), four)];
                for (int j = 0; j < 4; j++)
                    for (int t = 0; t < 4; t++) value[4 * i + j] += a.v[t] * b[j].v[t];
            }
        }
    }
#endif
};

// The Fours that a thread has fetched, into shared memory.
template <class Operand> __device__ void keep(const Operand &operand, const Four *fetched, Four *shared) {
    for (int s = 0; s < Operand::COUNT; s++) {
        Four four = fetched[s];
#if TF32
        for (int e = 0; e < 4; e++) four.v[e] = to_tf32(four.v[e]);
#endif
        shared[place(operand.line(s), operand.four(s))] = four;
    }
}

// sums += left * right' over the terms from first to last - 1.
template <class Left, class Right>
__device__ void multiply(Left &left, Right &right, int first, int last, Shared &shared, Sums &sums) {
    if (first >= last) return;
    Four next_left[Left::COUNT], next_right[Right::COUNT];
    left.fetch(first, next_left);
    right.fetch(first, next_right);
    keep(left, next_left, shared.left[0]);
    keep(right, next_right, shared.right[0]);
    __syncthreads();
    for (int k = first, now = 0; k < last; k += DEPTH, now = 1 - now) {
        const bool more = k + DEPTH < last;
        if (more) {
            left.fetch(k + DEPTH, next_left);
            right.fetch(k + DEPTH, next_right);
        }
        sums.add(shared.left[now], shared.right[now]);
        if (more) {
            keep(left, next_left, shared.left[1 - now]);
            keep(right, next_right, shared.right[1 - now]);
        }
        __syncthreads();
    }
}

// ---- kernels -----------------------------------------------------------------------------------------------------

// Grid: (tiles, 1, groups), where tiles of the same pixels and other channels follow each other. bias may be NULL.
extern "C" __global__ void __launch_bounds__(THREADS) conv_forward(
    const real *x, const real *weight, const real *bias, real *y, Conv d) {
    __shared__ Shared shared;
    const int tiles = (d.out_channels + COLUMNS - 1) / COLUMNS, group = blockIdx.z;
    const int m0 = blockIdx.x / tiles * ROWS, o0 = blockIdx.x % tiles * COLUMNS;
    const int terms = d.kernel[0] * d.kernel[1] * d.channels, pixels = d.samples * d.out_size[0] * d.out_size[1];
    const Axis vertical = {d.out_size[0], d.size[0], d.kernel[0], d.stride[0], -d.corner[0], d.dilation[0]};
    const Axis horizontal = {d.out_size[1], d.size[1], d.kernel[1], d.stride[1], -d.corner[1], d.dilation[1]};

    Pixels left(x + group * d.channels, d.samples, vertical, horizontal, d.channels, d.groups * d.channels, m0);
    Weights right(weight + (long long)group * d.out_channels * terms, o0, d.out_channels, terms);
    Sums sums;
    multiply(left, right, 0, terms, shared, sums);

    for (int r = 0; r < Sums::DOWN; r++)
        for (int c = 0; c < Sums::ALONG; c++) {
            const int m = m0 + sums.row(r), o = o0 + sums.column(c), channel = group * d.out_channels + o;
            if (m < pixels && o < d.out_channels)
                y[(long long)m * d.groups * d.out_channels + channel] = sums.at(r, c) + (bias ? bias[channel] : 0);
        }
}

// With a stride, input pixels h = a stride + phase of different phases see different taps: those i for which
// p = (h + corner - i dilation) / stride is a whole number. They are i = first + t step, t = 0, 1, ..., and
// p = a + (phase + corner - first dilation) / stride - t (step dilation / stride).
__device__ void taps_of_phase(const Conv &d, int axis, int phase, Taps &taps, Axis &read) {
    const int stride = d.stride[axis], dilation = d.dilation[axis], shifted = phase + d.corner[axis];
    taps.first = 0;
    taps.step = 1;
    while (taps.first < d.kernel[axis] && (shifted - taps.first * dilation) % stride) taps.first++;
    while (taps.step * dilation % stride) taps.step++;
    taps.count = (d.kernel[axis] - taps.first + taps.step - 1) / taps.step;
    const int results = (d.size[axis] - phase + stride - 1) / stride;
    const int origin = (shifted - taps.first * dilation) / stride;
    read = {results, d.out_size[axis], taps.count, 1, origin, -(taps.step * dilation / stride)};
}

// dx; with a bias, the forward of a transposed convolution; plus the image `onto`, if it is not NULL.
// Grid: (tiles, 1, groups * phases).
extern "C" __global__ void __launch_bounds__(THREADS) conv_input_gradient(
    const real *dy, const real *weight, const real *bias, const real *onto, real *dx, Conv d) {
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

    const long long weights = (long long)d.out_channels * d.kernel[0] * d.kernel[1] * d.channels;
    Pixels left(dy + group * d.out_channels, d.samples, vertical, horizontal, d.out_channels,
                d.groups * d.out_channels, m0);
    TransposedWeights right(weight + group * weights, c0, d.channels, d.out_channels, d.kernel, taps_h, taps_w);
    Sums sums;
    multiply(left, right, 0, taps_h.count * taps_w.count * d.out_channels, shared, sums);

    for (int r = 0; r < Sums::DOWN; r++) {
        const int m = m0 + sums.row(r), b = m % horizontal.results, a = m / horizontal.results % vertical.results;
        const int n = m / horizontal.results / vertical.results;
        const int h = a * d.stride[0] + phase_h, w = b * d.stride[1] + phase_w;
        const long long pixel = ((long long)n * d.size[0] + h) * d.size[1] + w;
        for (int e = 0; e < Sums::ALONG; e++) {
            const int c = c0 + sums.column(e), channel = group * d.channels + c;
            const long long i = pixel * d.groups * d.channels + channel;
            if (m < pixels && c < d.channels) dx[i] = sums.at(r, e) + (bias ? bias[channel] : 0) + (onto ? onto[i] : 0);
        }
    }
}

// parts[slice]: dw, then db, summed over the slice's share of the pixels. Grid: (tiles, slices, groups).
extern "C" __global__ void __launch_bounds__(THREADS) conv_weight_gradient(
    const real *dy, const real *x, real *parts, Conv d) {
    __shared__ Shared shared;
    const int terms = d.kernel[0] * d.kernel[1] * d.channels, pixels = d.samples * d.out_size[0] * d.out_size[1];
    const int tiles = (terms + COLUMNS - 1) / COLUMNS, group = blockIdx.z;
    const int o0 = blockIdx.x / tiles * ROWS, k0 = blockIdx.x % tiles * COLUMNS;
    const long long steps = (pixels + DEPTH - 1) / DEPTH;
    const int first = steps * blockIdx.y / gridDim.y * DEPTH, end = steps * (blockIdx.y + 1) / gridDim.y * DEPTH;
    const int last = end < pixels ? end : pixels;
    const Axis vertical = {d.out_size[0], d.size[0], d.kernel[0], d.stride[0], -d.corner[0], d.dilation[0]};
    const Axis horizontal = {d.out_size[1], d.size[1], d.kernel[1], d.stride[1], -d.corner[1], d.dilation[1]};

    PixelsAsTerms left(dy + group * d.out_channels, o0, d.out_channels, d.groups * d.out_channels, last);
    TapsOfPixels right(x + group * d.channels, vertical, horizontal, d.channels, d.groups * d.channels, k0, first,
                       last);
    Sums sums;
    multiply(left, right, first, last, shared, sums);

    const int lines = d.groups * d.out_channels, line0 = group * d.out_channels;
    real *dw = parts + (long long)blockIdx.y * lines * (terms + 1), *db = dw + (long long)lines * terms;
    for (int r = 0; r < Sums::DOWN; r++)
        for (int c = 0; c < Sums::ALONG; c++) {
            const int o = o0 + sums.row(r), k = k0 + sums.column(c);
            if (o < d.out_channels && k < terms) dw[(long long)(line0 + o) * terms + k] = sums.at(r, c);
        }
    if (k0 > 0) return;
    real *of_lines = (real *)&shared;  // four sums for each line, of the threads that fetched it
    for (int s = 0; s < PixelsAsTerms::COUNT; s++) of_lines[4 * left.line(s) + left.four(s)] = left.sums[s];
    __syncthreads();
    const int line = threadIdx.x, o = o0 + line;
    const real *four = of_lines + 4 * line;
    if (line < ROWS && o < d.out_channels) db[line0 + o] = four[0] + four[1] + four[2] + four[3];
}
