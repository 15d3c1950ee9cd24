// Layers and the imagined step for rows of bfloat16, on processors that multiply it (AVX-512 BF16).
//
// A product leaves its sums in registers and cache, and what follows it element by element (bias, norm, SiLU,
// gates, sampling) is done there, a few rows at a time, by the functions of kernels.cpp. Numbers are rounded to
// bfloat16 where the torch operations of lore/nn/layers.py and lore/dreamer/rssm.py round them. Built in one file
// with kernels.cpp. Letters: n rows, I inputs, O outputs, D deter, g blocks, o = D / g, h hidden, S latents,
// K classes, Z = S * K.

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include <vector>

namespace {

const long TILE = 48;  // rows whose intermediate results stay in cache

inline long in_blocks(long outputs) { return (outputs + 15) / 16 * 16; }

// Words of a packed weight: for each 16 outputs and each two inputs, 16 pairs.
inline long packed_words(long inputs, long outputs) { return in_blocks(outputs) * (inputs / 2); }

// w: I x O numbers at w[i * is + k * os] -> the packed form; I is even, outputs are filled up with zeros.
inline void pack(const bfloat16* w, long is, long os, long inputs, long outputs, uint32_t* to) {
    for (long first = 0; first < outputs; first += 16)
        for (long pair = 0; pair < inputs / 2; ++pair)
            for (long j = 0; j < 16; ++j, ++to) {
                const bfloat16* at = w + 2 * pair * is + (first + j) * os;
                *to = first + j < outputs ? uint32_t(at[0].bits) | uint32_t(at[is].bits) << 16 : 0;
            }
}

#ifdef __AVX512BF16__

// M rows by V vectors of 16 outputs: out = x @ w, summed in registers.
template <int M, int V>
inline void product_tile(float* out, long os, const bfloat16* x, long xs, const uint32_t* w, long pairs) {
    __m512 sum[M][V];
    for (int i = 0; i < M; ++i)
        for (int v = 0; v < V; ++v) sum[i][v] = _mm512_setzero_ps();
    for (long k = 0; k < pairs; ++k) {
        __m512bh row[V];
        for (int v = 0; v < V; ++v) row[v] = (__m512bh)_mm512_loadu_si512(w + (v * pairs + k) * 16);
        for (int i = 0; i < M; ++i) {
            int32_t two;
            std::memcpy(&two, x + i * xs + 2 * k, 4);
            __m512bh both = (__m512bh)_mm512_set1_epi32(two);
            for (int v = 0; v < V; ++v) sum[i][v] = _mm512_dpbf16_ps(sum[i][v], both, row[v]);
        }
    }
    for (int i = 0; i < M; ++i)
        for (int v = 0; v < V; ++v) _mm512_storeu_ps(out + i * os + v * 16, sum[i][v]);
}

template <int V>
inline void product_rows(float* out, long os, const bfloat16* x, long xs, const uint32_t* w, long pairs, long n) {
    long i = 0;
    for (; i + 6 <= n; i += 6) product_tile<6, V>(out + i * os, os, x + i * xs, xs, w, pairs);
    for (; i < n; ++i) product_tile<1, V>(out + i * os, os, x + i * xs, xs, w, pairs);
}

// out (n, in_blocks(O)) float32 = x (n, I; rows of stride xs) @ packed w.
inline void product_bf16(float* out, const bfloat16* x, long xs, const uint32_t* w, long n, long inputs,
                         long outputs) {
    long pairs = inputs / 2, width = in_blocks(outputs), j = 0;
    for (; j + 64 <= width; j += 64) product_rows<4>(out + j, width, x, xs, w + j * pairs, pairs, n);
    for (; j < width; j += 16) product_rows<1>(out + j, width, x, xs, w + j * pairs, pairs, n);
}

#else

inline void product_bf16(float*, const bfloat16*, long, const uint32_t*, long, long, long) {}

#endif

// y (n, O) bfloat16, rows of stride ys, = x @ packed w + bias (null for none), rounded once.
void linear_rows(const bfloat16* x, long xs, const uint32_t* w, const bfloat16* bias, bfloat16* y, long ys, long n,
                 long inputs, long outputs, float* sums) {
    product_bf16(sums, x, xs, w, n, inputs, outputs);
    for (long i = 0; i < n; ++i) {
        const float* from = sums + i * in_blocks(outputs);
        bfloat16* to = y + i * ys;
        if (bias)
            for (long j = 0; j < outputs; ++j) put(to[j], from[j] + get(bias[j]));
        else
            for (long j = 0; j < outputs; ++j) put(to[j], from[j]);
    }
}

// What one imagined step multiplies by: weights packed, the rest bfloat16. In the order of rssm.StepWeights.
struct StepWeights {
    const uint32_t *deter_w;
    const bfloat16 *deter_b, *deter_scale;
    const uint32_t *stoch_w;
    const bfloat16 *stoch_b, *stoch_scale;
    const uint32_t *own_w, *shared_w;
    const bfloat16 *action, *core_scale;
    const uint32_t *gates_w;
    const bfloat16 *gates_b;
    const uint32_t *prior0_w;
    const bfloat16 *prior0_b, *prior0_scale;
    const uint32_t *prior1_w;
    const bfloat16 *prior1_b, *prior1_scale;
    const uint32_t *logits_w;
    const bfloat16 *logits_b;
};

}  // namespace

extern "C" {
// Whether products of bfloat16 are computed here; without it nothing else in this file may be called.
long multiplies_bfloat16() {
#ifdef __AVX512BF16__
    return 1;
#else
    return 0;
#endif
}

// g weights of I x O numbers at w[b * bs + i * is + k * os] -> their packed forms, one after the other.
void pack_bfloat16(const bfloat16* w, long bs, long is, long os, uint32_t* to, long g, long inputs, long outputs) {
    for (long b = 0; b < g; ++b) pack(w + b * bs, is, os, inputs, outputs, to + b * packed_words(inputs, outputs));
}

// y = silu(norm(z) * scale) with z = x @ w.T + bias, or y = z without a scale. x (n, I) rows of stride xs, w (O, I),
// y (n, O) rows of stride ys; z (n, O) and r (n), the inverse root mean squares, are kept if asked for.
void dense_bfloat16(const bfloat16* x, long xs, const bfloat16* w, const bfloat16* bias, const bfloat16* scale,
                    bfloat16* z, bfloat16* y, long ys, float* r, long n, long inputs, long outputs, float eps) {
    static thread_local std::vector<uint32_t> packed;
    static thread_local std::vector<float> sums;
    static thread_local std::vector<bfloat16> rows;
    packed.resize(packed_words(inputs, outputs));
    sums.resize(TILE * in_blocks(outputs));
    rows.resize(TILE * outputs);
    pack(w, 1, inputs, inputs, outputs, packed.data());
    for (long first = 0; first < n; first += TILE) {
        long m = n - first < TILE ? n - first : TILE;
        const bfloat16* xi = x + first * xs;
        bfloat16 *zi = z ? z + first * outputs : rows.data(), *yi = y + first * ys;
        if (scale) {
            linear_rows(xi, xs, packed.data(), bias, zi, outputs, m, inputs, outputs, sums.data());
            norm_silu(zi, scale, yi, ys, r ? r + first : nullptr, m, outputs, eps);
        } else {
            linear_rows(xi, xs, packed.data(), bias, yi, ys, m, inputs, outputs, sums.data());
        }
    }
}

// One imagined step: feat (n, D + Z) rows of stride fs, action (n), uniform (n, S) -> the next feat, rows of
// stride os.
void prior_step_bfloat16(const bfloat16* feat, long fs, const int64_t* action, const float* uniform,
                         const StepWeights* weights, bfloat16* out, long os, long n, long D, long g, long h, long S,
                         long K, float mix, float eps) {
    const StepWeights& w = *weights;
    long o = D / g, Z = S * K, widest = in_blocks(D > Z ? D : Z);
    if (3 * o > widest) widest = in_blocks(3 * o);
    std::vector<float> sums(TILE * widest);
    std::vector<bfloat16> buffer(TILE * (3 * h + 2 * D + D + 3 * D + Z));
    std::vector<uint8_t> index(TILE * S);
    bfloat16 *z = buffer.data(), *shared = z + TILE * h, *own = shared + TILE * 2 * h, *sum = own + TILE * D;
    bfloat16 *hidden = sum + TILE * D, *gates = hidden + TILE * D, *logits = gates + TILE * 3 * D;
    for (long first = 0; first < n; first += TILE) {
        long m = n - first < TILE ? n - first : TILE;
        const bfloat16* x = feat + first * fs;
        bfloat16* y = out + first * os;
        linear_rows(x, fs, w.deter_w, w.deter_b, z, h, m, D, h, sums.data());
        norm_silu<bfloat16>(z, w.deter_scale, shared, 2 * h, nullptr, m, h, eps);
        linear_rows(x + D, fs, w.stoch_w, w.stoch_b, z, h, m, Z, h, sums.data());
        norm_silu<bfloat16>(z, w.stoch_scale, shared + h, 2 * h, nullptr, m, h, eps);
        linear_rows(shared, 2 * h, w.shared_w, nullptr, sum, D, m, 2 * h, D, sums.data());
        for (long b = 0; b < g; ++b)
            linear_rows(x + b * o, fs, w.own_w + b * packed_words(o, o), nullptr, own + b * m * o, o, m, o, o,
                        sums.data());
        core_hidden<bfloat16>(sum, w.action, action + first, own, w.core_scale, hidden, m * o, nullptr, nullptr, m,
                              g, o, eps);
        for (long b = 0; b < g; ++b)
            linear_rows(hidden + b * m * o, o, w.gates_w + b * packed_words(o, 3 * o), nullptr,
                        gates + b * m * 3 * o, 3 * o, m, o, 3 * o, sums.data());
        gru<bfloat16>(gates, m * 3 * o, w.gates_b, x, fs, y, os, 0, m, g, o);
        linear_rows(y, os, w.prior0_w, w.prior0_b, z, h, m, D, h, sums.data());
        norm_silu<bfloat16>(z, w.prior0_scale, shared, h, nullptr, m, h, eps);
        linear_rows(shared, h, w.prior1_w, w.prior1_b, z, h, m, h, h, sums.data());
        norm_silu<bfloat16>(z, w.prior1_scale, shared, h, nullptr, m, h, eps);
        linear_rows(shared, h, w.logits_w, w.logits_b, logits, Z, m, h, Z, sums.data());
        sample<bfloat16>(logits, uniform + first * S, index.data(), y + D, os, nullptr, m, S, K, mix);
    }
}
}
