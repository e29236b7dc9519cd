// Random numbers by Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3):
// a function of a key and a counter gives four random words, so that every thread computes its own.
// state[0] is the key, state[1] the counter: thread i uses counter + i, and `advance_counter` moves it on afterwards.

static __device__ __forceinline__ void philox(const unsigned long long *state, long long i, unsigned word[4]) {
    const unsigned long long key = state[0], counter = state[1] + i;
    unsigned k0 = (unsigned)key, k1 = (unsigned)(key >> 32);
    unsigned c0 = (unsigned)counter, c1 = (unsigned)(counter >> 32), c2 = 0, c3 = 0;
    for (int round = 0; round < 10; round++) {
        const unsigned long long p = 0xD2511F53ull * c0, q = 0xCD9E8D57ull * c2;
        c0 = (unsigned)(q >> 32) ^ c1 ^ k0;
        c1 = (unsigned)q;
        c2 = (unsigned)(p >> 32) ^ c3 ^ k1;
        c3 = (unsigned)p;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    word[0] = c0, word[1] = c1, word[2] = c2, word[3] = c3;
}

// Numbers u in [0, 1), evenly spaced by 2^-24 (float: four from the words) or 2^-53 (double: two).
const int NUMBERS = 16 / sizeof(real);

static __device__ __forceinline__ void uniform(const unsigned long long *state, long long i, real u[NUMBERS]) {
    unsigned word[4];
    philox(state, i, word);
    for (int k = 0; k < NUMBERS; k++)
        u[k] = sizeof(real) == 4 ? (real)((word[k] >> 8) * (1.0f / (1 << 24)))
                                 : (real)(((word[2 * k % 4] >> 5) * 67108864.0 + (word[(2 * k + 1) % 4] >> 6))
                                          * (1.0 / 9007199254740992.0));
}

// Thread i writes NUMBERS neighbouring elements, from out[i * NUMBERS].
extern "C" __global__ void draw_uniform(const unsigned long long *state, real *out, long long size) {
    const long long i = blockIdx.x * 256ll + threadIdx.x;
    real u[NUMBERS];
    uniform(state, i, u);
    for (int k = 0; k < NUMBERS; k++)
        if (i * NUMBERS + k < size) out[i * NUMBERS + k] = u[k];
}

// Box & Muller 1958: r cos(angle) and r sin(angle) are two independent normal numbers.
extern "C" __global__ void draw_normal(const unsigned long long *state, real *out, long long size) {
    const long long i = blockIdx.x * 256ll + threadIdx.x;
    real u[NUMBERS];
    uniform(state, i, u);
    for (int k = 0; k < NUMBERS; k += 2) {
        const real r = sqrt(-2 * log(1 - u[k])), angle = (real)6.283185307179586 * u[k + 1];
        const long long at = i * NUMBERS + k;
        if (at < size) out[at] = r * cos(angle);
        if (at + 1 < size) out[at + 1] = r * sin(angle);
    }
}

// low + ⌊range w / 2^32⌋ for each random word w; thread i writes four.
extern "C" __global__ void draw_integers(const unsigned long long *state, long long *out, long long low,
                                         unsigned long long range, long long size) {
    const long long i = blockIdx.x * 256ll + threadIdx.x;
    unsigned word[4];
    philox(state, i, word);
    for (int k = 0; k < 4; k++)
        if (i * 4 + k < size) out[i * 4 + k] = low + (long long)((range * word[k]) >> 32);
}

extern "C" __global__ void advance_counter(unsigned long long *state, unsigned long long steps) { state[1] += steps; }
