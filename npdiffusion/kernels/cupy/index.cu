// The gradient of indexing, without atomics: who is added gathers from all who may have taken it.

// out[row][d] = sum of g[i][d] over the i with index[i] == row, in the order of i. One thread for each element of out;
// negative indices count from the end.
extern "C" __global__ void add_rows(const real *g, const long long *index, real *out, long long count, long long rows,
                                    long long length) {
    const long long at = blockIdx.x * 256ll + threadIdx.x, row = at / length, d = at % length;
    if (row >= rows) return;
    real sum = 0;
    for (long long i = 0; i < count; i++)
        if (index[i] == row || index[i] + rows == row) sum += g[i * length + d];
    out[at] = sum;
}
