// Stacked matrix products y = scale a b + bias, and a linear layer's gradients. A stack has two axes (o, i): an
// operand's matrix begins stack[0] o + stack[1] i behind its first element (0 where one matrix serves all). Either its
// rows or its columns lie side by side in memory, `pitch` from one to the next: no transposition is ever copied.

#include "tile.cuh"

struct Operand { long long stack[2]; int pitch; };

struct Product {
    Operand a, b, y;
    int rows, columns, terms, inner;  // inner: size of the second stack axis
    double scale;
};

// As left * right' the lines of the left operand are a's rows, those of the right one b's columns.
// Grid: (tiles, with one stack behind the other). bias: a number for each column, or NULL.
template <class Left, class Right>
__device__ void product(const real *a, const real *b, const real *bias, real *y, const Product &d) {
    __shared__ Shared shared;
    const int across = (d.columns + COLUMNS - 1) / COLUMNS, tiles = (d.rows + ROWS - 1) / ROWS * across;
    const int tile = blockIdx.x % tiles, i = blockIdx.x / tiles % d.inner, o = blockIdx.x / tiles / d.inner;
    const int row0 = tile / across * ROWS, column0 = tile % across * COLUMNS;

    Left left(a + o * d.a.stack[0] + i * d.a.stack[1], row0, d.rows, d.a.pitch, d.terms);
    Right right(b + o * d.b.stack[0] + i * d.b.stack[1], column0, d.columns, d.b.pitch, d.terms);
    Sums sums;
    multiply(left, right, d.terms, shared, sums);

    y += o * d.y.stack[0] + i * d.y.stack[1];
    for (int r = 0; r < Sums::DOWN; r++)
        for (int c = 0; c < Sums::ALONG; c++) {
            const int row = row0 + sums.row(r), column = column0 + sums.column(c);
            if (row < d.rows && column < d.columns)
                y[(long long)row * d.y.pitch + column] = (real)d.scale * sums.at(r, c) + (bias ? bias[column] : 0);
        }
}

// n: the operand lies as it is; t: it lies transposed.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) product_nn(
    const real *a, const real *b, const real *bias, real *y, Product d) {
    product<Rows<ROWS>, Columns<COLUMNS>>(a, b, bias, y, d);
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) product_nt(
    const real *a, const real *b, const real *bias, real *y, Product d) {
    product<Rows<ROWS>, Rows<COLUMNS>>(a, b, bias, y, d);
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) product_tn(
    const real *a, const real *b, const real *bias, real *y, Product d) {
    product<Columns<ROWS>, Columns<COLUMNS>>(a, b, bias, y, d);
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) product_tt(
    const real *a, const real *b, const real *bias, real *y, Product d) {
    product<Columns<ROWS>, Rows<COLUMNS>>(a, b, bias, y, d);
}

// parts[slice]: g' x (rows, columns), and behind it the sums of g's columns, over the slice's share of the terms, which
// are the rows of g and x. Grid: (tiles, slices).
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) linear_gradient(
    const real *g, const real *x, real *parts, int rows, int columns, long long terms) {
    __shared__ Shared shared;
    const int across = (columns + COLUMNS - 1) / COLUMNS;
    const int row0 = blockIdx.x / across * ROWS, column0 = blockIdx.x % across * COLUMNS;
    const Slice slice(terms);

    SummedColumns<ROWS> left(g + slice.first * rows, row0, rows, rows, slice.terms);
    Columns<COLUMNS> right(x + slice.first * columns, column0, columns, columns, slice.terms);
    Sums sums;
    multiply(left, right, slice.terms, shared, sums);

    parts += (long long)blockIdx.y * rows * (columns + 1);
    store(sums, left, shared, row0, column0, rows, columns, parts, parts + (long long)rows * columns);
}
