// Fused element-wise operations of DreamerV3 on a CPU, for rows of float32 or bfloat16.
//
// Every function is a few lines of lore/nn/fused.py in one pass over memory; fused.py calls them through ctypes
// and holds the same mathematics in torch operations. T is the type in memory; all arithmetic is float32.

#include <cstdint>
#include <cstring>
#include <cmath>

namespace {

struct bfloat16 {
    uint16_t bits;
};

inline float bits_to_float(uint32_t u) {
    float f;
    std::memcpy(&f, &u, 4);
    return f;
}

inline uint32_t float_to_bits(float f) {
    uint32_t u;
    std::memcpy(&u, &f, 4);
    return u;
}

inline float get(float x) { return x; }
inline float get(bfloat16 x) { return bits_to_float(uint32_t(x.bits) << 16); }
inline void put(float& to, float x) { to = x; }
inline void put(bfloat16& to, float x) {  // to nearest, ties to even; a NaN stays one
    uint32_t u = float_to_bits(x), rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    to.bits = uint16_t((u & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

// exp to 2 units in the last place (Cephes), written so that compilers vectorise it.
inline float fast_exp(float value) {
    float x = value < -87.0f ? -87.0f : value;
    x = x > 88.0f ? 88.0f : x;
    float n = std::floor(x * 1.44269504f + 0.5f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return value < -87.0f ? 0.0f : p * bits_to_float(uint32_t(int32_t(n) + 127) << 23);
}

inline float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }
inline float tanh_(float x) { return 1.0f - 2.0f / (fast_exp(2.0f * x) + 1.0f); }

const long LONGEST = 16384;  // width of a row that fits the buffers on the stack

// Loops over a padded row have no remainder, which a compiler may round otherwise than the vectors before it:
// equal logits must give equal numbers, or the outermost bins of a two-hot, some 10^8, no longer cancel.
inline long whole_vectors(long k) { return (k + 63) / 64 * 64; }

// Largest of n numbers, a multiple of 16.
inline float largest(const float* x, long n) {
    float top[16];
    for (int l = 0; l < 16; ++l) top[l] = x[l];
    for (long j = 16; j < n; j += 16)
        for (int l = 0; l < 16; ++l) top[l] = x[j + l] > top[l] ? x[j + l] : top[l];
    for (int l = 1; l < 16; ++l) top[0] = top[l] > top[0] ? top[l] : top[0];
    return top[0];
}

const long LANES = 64;

// Rows taken together, so that one row's square root and division do not wait for another's.
const long TOGETHER = 8;

// y = silu(z * r * scale), r = 1 / sqrt(mean(z^2) + eps). z (n, u), y rows of stride ys, r (n)
template <class T>
void norm_silu(const T* z, const T* scale, T* y, long ys, float* r, long n, long u, float eps) {
    float s[LONGEST], ri[TOGETHER];
    for (long j = 0; j < u; ++j) s[j] = get(scale[j]);
    for (long first = 0; first < n; first += TOGETHER) {
        long rows = n - first < TOGETHER ? n - first : TOGETHER;
        for (long i = 0; i < rows; ++i) {
            const T* zi = z + (first + i) * u;
            float sum = 0;
            for (long j = 0; j < u; ++j) sum += get(zi[j]) * get(zi[j]);
            ri[i] = sum;
        }
        for (long i = 0; i < rows; ++i) ri[i] = 1.0f / std::sqrt(ri[i] / u + eps);
        if (r)
            for (long i = 0; i < rows; ++i) r[first + i] = ri[i];
        for (long i = 0; i < rows; ++i) {
            const T* zi = z + (first + i) * u;
            T* yi = y + (first + i) * ys;
            for (long j = 0; j < u; ++j) {
                float a = get(zi[j]) * ri[i] * s[j];
                put(yi[j], a * sigmoid(a));
            }
        }
    }
}

// Gradient of norm_silu. g rows of stride gs; gz (n, u); gscale (u) float32, added to.
template <class T>
void norm_silu_back(const T* g, long gs, const T* z, const float* r, const T* scale, T* gz, float* gscale,
                    long n, long u) {
    float s[LONGEST], gn[LONGEST], dot[TOGETHER];
    long most = u * TOGETHER <= LONGEST ? TOGETHER : 1;
    for (long j = 0; j < u; ++j) s[j] = get(scale[j]);
    for (long first = 0; first < n; first += most) {
        long rows = n - first < most ? n - first : most;
        for (long i = 0; i < rows; ++i) {
            const T *gi = g + (first + i) * gs, *zi = z + (first + i) * u;
            float *to = gn + i * u, ri = r[first + i], sum = 0;
            for (long j = 0; j < u; ++j) {
                float x = get(zi[j]) * ri, a = x * s[j], p = sigmoid(a);
                float ga = get(gi[j]) * p * (1.0f + a * (1.0f - p));
                gscale[j] += ga * x;
                to[j] = ga * s[j];
                sum += to[j] * x;
            }
            dot[i] = sum / u;
        }
        for (long i = 0; i < rows; ++i) {
            const T* zi = z + (first + i) * u;
            T* out = gz + (first + i) * u;
            float ri = r[first + i];
            for (long j = 0; j < u; ++j) put(out[j], (gn[i * u + j] - get(zi[j]) * ri * dot[i]) * ri);
        }
    }
}

// The core's hidden layer. z (n, d) = shared part + table[action] (skipped without a table) + own part
// (g, n, o); hidden = norm_silu(z) by block (g rows of stride hg, (n, o) each). z and r are kept if asked for.
template <class T>
void core_hidden(const T* shared, const T* table, const int64_t* action, const T* own, const T* scale,
                 T* hidden, long hg, T* keep, float* r, long n, long g, long o, float eps) {
    float z[LONGEST];
    long d = g * o;
    for (long i = 0; i < n; ++i) {
        float sum = 0;
        const T* row = table ? table + action[i] * d : nullptr;
        for (long b = 0; b < g; ++b) {
            const T *si = shared + i * d + b * o, *oi = own + (b * n + i) * o;
            float* zb = z + b * o;
            if (row) {
                for (long j = 0; j < o; ++j) zb[j] = get(si[j]) + get(oi[j]) + get(row[b * o + j]);
            } else {
                for (long j = 0; j < o; ++j) zb[j] = get(si[j]) + get(oi[j]);
            }
            for (long j = 0; j < o; ++j) sum += zb[j] * zb[j];
        }
        float ri = 1.0f / std::sqrt(sum / d + eps);
        if (r) r[i] = ri;
        if (keep)
            for (long j = 0; j < d; ++j) put(keep[i * d + j], z[j]);
        for (long b = 0; b < g; ++b) {
            T* hi = hidden + b * hg + i * o;
            for (long j = 0; j < o; ++j) {
                float a = z[b * o + j] * ri * get(scale[b * o + j]);
                put(hi[j], a * sigmoid(a));
            }
        }
    }
}

// gates (g, n, 3o) without bias (g, 3o); deter rows of stride ds. New deter to rows of stride os; reset, inner
// part and update over the gates if `keep`.
template <class T>
void gru(T* gates, long gg, const T* bias, const T* deter, long ds, T* out, long os, long keep, long n, long g,
         long o) {
    float value[LONGEST], reset[LONGEST], inner[LONGEST], update[LONGEST];
    for (long b = 0; b < g; ++b) {
        const T* bi = bias + b * 3 * o;
        for (long i = 0; i < n; ++i) {
            T* gi = gates + b * gg + i * 3 * o;
            const T* old = deter + i * ds + b * o;
            for (long j = 0; j < o; ++j) reset[j] = sigmoid(get(gi[j]) + get(bi[j]));
            for (long j = 0; j < o; ++j) inner[j] = get(gi[o + j]) + get(bi[o + j]);
            for (long j = 0; j < o; ++j) update[j] = sigmoid(get(gi[2 * o + j]) + get(bi[2 * o + j]) - 1.0f);
            for (long j = 0; j < o; ++j)
                value[j] = update[j] * tanh_(reset[j] * inner[j]) + (1.0f - update[j]) * get(old[j]);
            for (long j = 0; j < o; ++j) put(out[i * os + b * o + j], value[j]);
            if (keep)
                for (long j = 0; j < o; ++j) {
                    put(gi[j], reset[j]);
                    put(gi[o + j], inner[j]);
                    put(gi[2 * o + j], update[j]);
                }
        }
    }
}

// Gradient of gru from what it kept: ggates (g, n, 3o) and the direct part of the old deter's (n, d).
void gru_back(const float* g_out, const float* kept, long kg, const float* deter, float* ggates, float* gdeter,
              long n, long g, long o) {
    float candidate[LONGEST], ginner[LONGEST];
    long d = g * o;
    for (long b = 0; b < g; ++b)
        for (long i = 0; i < n; ++i) {
            const float* k = kept + b * kg + i * 3 * o;
            float* to = ggates + b * kg + i * 3 * o;
            const float *gi = g_out + i * d + b * o, *old = deter + i * d + b * o;
            float* gd = gdeter + i * d + b * o;
            for (long j = 0; j < o; ++j) candidate[j] = tanh_(k[j] * k[o + j]);
            for (long j = 0; j < o; ++j) ginner[j] = gi[j] * k[2 * o + j] * (1.0f - candidate[j] * candidate[j]);
            for (long j = 0; j < o; ++j) to[j] = ginner[j] * k[o + j] * k[j] * (1.0f - k[j]);
            for (long j = 0; j < o; ++j) to[o + j] = ginner[j] * k[j];
            for (long j = 0; j < o; ++j)
                to[2 * o + j] = gi[j] * (candidate[j] - old[j]) * k[2 * o + j] * (1.0f - k[2 * o + j]);
            for (long j = 0; j < o; ++j) gd[j] = gi[j] * (1.0f - k[2 * o + j]);
        }
}

// Softmax of up to LANES rows of k logits, one row a lane: p[j][lane] before division by sum[lane].
const long FEW = 32;

template <class T>
inline void lanes_softmax(const T* logits, long k, long rows, float (*p)[LANES], float* top, float* sum) {
    for (long j = 0; j < k; ++j) {
        for (long r = 0; r < rows; ++r) p[j][r] = get(logits[r * k + j]);
        for (long r = rows; r < LANES; ++r) p[j][r] = 0;
    }
    for (long r = 0; r < LANES; ++r) top[r] = p[0][r];
    for (long j = 1; j < k; ++j)
        for (long r = 0; r < LANES; ++r) top[r] = p[j][r] > top[r] ? p[j][r] : top[r];
    for (long r = 0; r < LANES; ++r) sum[r] = 0;
    for (long j = 0; j < k; ++j)
        for (long r = 0; r < LANES; ++r) {
            p[j][r] = fast_exp(p[j][r] - top[r]);
            sum[r] += p[j][r];
        }
}

// A class for each of n * s rows of k logits: softmax, a uniform share, inverse CDF; k is at most 256. Never a
// class of probability zero, though the sum of the others may round to less than one.
// hot: one-hot rows of stride hs for n; probs (n, s, k) float32; each is skipped if null.
template <class T>
void sample(const T* logits, const float* uniform, uint8_t* index, T* hot, long hs, float* probs, long n,
            long s, long k, float mix) {
    static thread_local float p[256][LANES];
    float top[LANES], sum[LANES], edge[LANES];
    int32_t chosen[LANES], last[LANES];
    T zero, one;
    put(zero, 0.0f);
    put(one, 1.0f);
    for (long first = 0; first < n * s; first += LANES) {
        long rows = n * s - first < LANES ? n * s - first : LANES;
        lanes_softmax(logits + first * k, k, rows, p, top, sum);
        for (long r = 0; r < LANES; ++r) {
            sum[r] = (1.0f - mix) / sum[r];
            edge[r] = 0;
            chosen[r] = last[r] = 0;
        }
        for (long j = 0; j < k; ++j)
            for (long r = 0; r < LANES; ++r) {
                p[j][r] = p[j][r] * sum[r] + mix / k;
                last[r] = p[j][r] > 0 ? j : last[r];
            }
        float u[LANES] = {0};
        for (long r = 0; r < rows; ++r) u[r] = uniform[first + r];
        for (long j = 0; j < k - 1; ++j)
            for (long r = 0; r < LANES; ++r) {
                edge[r] += p[j][r];
                chosen[r] += u[r] >= edge[r] ? 1 : 0;
            }
        for (long r = 0; r < LANES; ++r) chosen[r] = chosen[r] < last[r] ? chosen[r] : last[r];
        for (long r = 0; r < rows; ++r) index[first + r] = uint8_t(chosen[r]);
        if (probs)
            for (long r = 0; r < rows; ++r)
                for (long j = 0; j < k; ++j) probs[(first + r) * k + j] = p[j][r];
        if (hot) {
            long i = first / s, latent = first % s;
            for (long r = 0; r < rows; ++r, ++latent) {
                if (latent == s) latent = 0, ++i;
                T* to = hot + i * hs + latent * k;
                for (long j = 0; j < k; ++j) to[j] = zero;
                to[chosen[r]] = one;
            }
        }
    }
}

// Gradient of the logits from that of the probabilities (a + b + c, each may be null), rows of k.
void sample_back(const float* a, const float* b, const float* c, const float* probs, float* glogits, long n,
                 long k, float mix) {
    float gp[LONGEST];
    for (long i = 0; i < n; ++i) {
        float dot = 0;
        const float* pi = probs + i * k;
        for (long j = 0; j < k; ++j) {
            float x = a[i * k + j] + (b ? b[i * k + j] : 0.0f) + (c ? c[i * k + j] : 0.0f);
            float soft = (pi[j] - mix / k) / (1.0f - mix);
            gp[j] = x * (1.0f - mix) * soft;
            dot += gp[j];
        }
        for (long j = 0; j < k; ++j) glogits[i * k + j] = gp[j] - dot * (pi[j] - mix / k) / (1.0f - mix);
    }
}

// Log of the sum of exponentials of each row of k logits and, given bins (k), the mean; for odd k bins of
// opposite sign are paired before they are summed, so that equal logits give exactly zero.
template <class T>
void log_sum(const T* logits, const float* bins, float* log_norm, float* mean, long n, long k) {
    if (k <= FEW && !mean) {
        float few[FEW][LANES], top[LANES], sum[LANES];
        for (long first = 0; first < n; first += LANES) {
            long rows = n - first < LANES ? n - first : LANES;
            lanes_softmax(logits + first * k, k, rows, few, top, sum);
            for (long r = 0; r < rows; ++r) log_norm[first + r] = top[r] + std::log(sum[r]);
        }
        return;
    }
    float p[LONGEST];
    long half = k / 2, padded = whole_vectors(k);
    for (long i = 0; i < n; ++i) {
        const T* li = logits + i * k;
        for (long j = 0; j < k; ++j) p[j] = get(li[j]);
        for (long j = k; j < padded; ++j) p[j] = -INFINITY;
        float top = largest(p, padded), sum = 0;
        for (long j = 0; j < padded; ++j) {
            p[j] = fast_exp(p[j] - top);
            sum += p[j];
        }
        log_norm[i] = top + std::log(sum);
        if (mean) {
            float m = 0;
            for (long j = 1; j <= half; ++j) m += (p[half + j] - p[half - j]) * bins[half + j];
            mean[i] = m / sum;
        }
    }
}

// Gradient of sum(weight * (log_norm - logits[index])) over m targets a row, times g (n).
template <class T>
void cross_entropy_back(const T* logits, const float* log_norm, const int64_t* index, const float* weight,
                        const float* g, T* out, long n, long k, long m) {
    float row[LONGEST];
    long together = k < LANES ? LANES / k : 1;  // rows in one pass: short ones would waste most of a vector
    for (long first = 0; first < n; first += together) {
        long rows = n - first < together ? n - first : together, size = whole_vectors(rows * k);
        const T* li = logits + first * k;
        T* to = out + first * k;
        float norm[LANES], total[LANES];
        for (long i = 0; i < rows; ++i) {
            float sum = 0;
            for (long c = 0; c < m; ++c) sum += weight ? weight[(first + i) * m + c] : 1.0f;
            total[i] = sum * g[first + i];
            norm[i] = log_norm[first + i];
        }
        for (long i = 0; i < rows; ++i)
            for (long j = 0; j < k; ++j) row[i * k + j] = get(li[i * k + j]) - norm[i];
        for (long j = rows * k; j < size; ++j) row[j] = 0;
        for (long j = 0; j < size; ++j) row[j] = fast_exp(row[j]);
        for (long i = 0; i < rows; ++i) {
            for (long j = 0; j < k; ++j) row[i * k + j] *= total[i];
            for (long c = 0; c < m; ++c) {
                float share = weight ? weight[(first + i) * m + c] : 1.0f;
                row[i * k + index[(first + i) * m + c]] -= share * g[first + i];
            }
        }
        for (long j = 0; j < rows * k; ++j) put(to[j], row[j]);
    }
}

// Loss of n rows of s categoricals of k classes: sum of target * (log_norm - logit). log_norm (n, s), loss (n).
template <class T>
void soft_cross_entropy(const T* logits, const float* log_norm, const float* target, float* loss, long n, long s,
                        long k) {
    float norm[LONGEST];
    long width = s * k;
    for (long i = 0; i < n; ++i) {
        for (long l = 0; l < s; ++l)
            for (long c = 0; c < k; ++c) norm[l * k + c] = log_norm[i * s + l];
        const T* li = logits + i * width;
        const float* ti = target + i * width;
        float sum = 0;
        for (long j = 0; j < width; ++j) sum += ti[j] * (norm[j] - get(li[j]));
        loss[i] = sum;
    }
}

// Gradient of the logits, g (n) times probability * (sum of the target) - target.
template <class T>
void soft_cross_entropy_back(const T* logits, const float* log_norm, const float* target, const float* g, T* out,
                             long n, long s, long k) {
    float norm[LONGEST], total[LONGEST];
    long width = s * k;
    for (long i = 0; i < n; ++i) {
        const T* li = logits + i * width;
        const float* ti = target + i * width;
        for (long l = 0; l < s; ++l) {
            float sum = 0;
            for (long c = 0; c < k; ++c) sum += ti[l * k + c];
            for (long c = 0; c < k; ++c) {
                norm[l * k + c] = log_norm[i * s + l];
                total[l * k + c] = sum;
            }
        }
        for (long j = 0; j < width; ++j)
            put(out[i * width + j], (fast_exp(get(li[j]) - norm[j]) * total[j] - ti[j]) * g[i]);
    }
}

// Variance between m opinions (m, n, s, k) of a probability, averaged over s and k. out (n)
template <class T>
void spread(const T* logits, float* out, long m, long n, long s, long k) {
    float p[LONGEST];
    long width = s * k;
    for (long i = 0; i < n; ++i) {
        for (long e = 0; e < m; ++e) {
            const T* li = logits + (e * n + i) * width;
            float* pe = p + e * width;
            for (long l = 0; l < width; l += k) {
                float top = get(li[l]);
                for (long c = 1; c < k; ++c) top = get(li[l + c]) > top ? get(li[l + c]) : top;
                for (long c = 0; c < k; ++c) pe[l + c] = get(li[l + c]) - top;
            }
            for (long j = 0; j < width; ++j) pe[j] = fast_exp(pe[j]);
            for (long l = 0; l < width; l += k) {
                float sum = 0;
                for (long c = 0; c < k; ++c) sum += pe[l + c];
                for (long c = 0; c < k; ++c) pe[l + c] /= sum;
            }
        }
        float squares = 0;
        for (long j = 0; j < width; ++j) {
            float mean = 0;
            for (long e = 0; e < m; ++e) mean += p[e * width + j];
            mean /= m;
            for (long e = 0; e < m; ++e) squares += (p[e * width + j] - mean) * (p[e * width + j] - mean);
        }
        out[i] = squares / width / (m - 1);
    }
}

// R rows x, of stride `inputs`, times w (inputs, outputs) plus bias: rows to, of stride outputs. FULL: of outputs
// in whole LANES; else the rest of less than LANES.
template <long R, bool FULL, class A, class T>
inline void lanes_times(const A* x, const T* w, const T* bias, float* to, long inputs, long outputs, long rest) {
    float sum[R][LANES] = {};
    const long width = FULL ? LANES : rest;
    for (long i = 0; i < inputs; ++i)
        for (long r = 0; r < R; ++r) {
            const float xi = get(x[r * inputs + i]);
            for (long j = 0; j < width; ++j) sum[r][j] += xi * get(w[i * outputs + j]);
        }
    for (long r = 0; r < R; ++r)
        for (long j = 0; j < width; ++j) to[r * outputs + j] = sum[r][j] + get(bias[j]);
}

template <long R, class A, class T>
inline void rows_times(const A* x, const T* w, const T* bias, float* to, long inputs, long outputs) {
    long first = 0;
    for (; first + LANES <= outputs; first += LANES)
        lanes_times<R, true>(x, w + first, bias + first, to + first, inputs, outputs, LANES);
    if (first < outputs)
        lanes_times<R, false>(x, w + first, bias + first, to + first, inputs, outputs, outputs - first);
}

template <class A, class T>
inline void all_times(const A* x, const T* w, const T* bias, float* to, long n, long inputs, long outputs) {
    long i = 0;
    for (; i + 2 <= n; i += 2) rows_times<2>(x + i * inputs, w, bias, to + i * outputs, inputs, outputs);
    for (; i < n; ++i) rows_times<1>(x + i * inputs, w, bias, to + i * outputs, inputs, outputs);
}

// m networks side by side for few rows: linear, norm_silu, linear. With choices, each row x (n, inputs) is taken
// with each choice, whose weights follow those of the inputs, and there are n * choices rows. out (m, rows,
// outputs); space: float32, rows * (units + outputs) + n * units + units.
template <class T>
void members(const T* x, const T* weight_in, const T* bias_in, const T* scale, const T* weight_out,
             const T* bias_out, T* out, float* space, long m, long n, long inputs, long choices, long units,
             long outputs, float eps) {
    long rows = choices ? n * choices : n;
    float *hidden = space, *y = hidden + rows * units, *first = y + rows * outputs, *s = first + n * units;
    for (long k = 0; k < m; ++k) {
        const T* w = weight_in + k * (inputs + choices) * units;
        all_times(x, w, bias_in + k * units, choices ? first : hidden, n, inputs, units);
        for (long i = 0; choices && i < rows; ++i) {
            const T* wi = w + (inputs + i % choices) * units;
            for (long j = 0; j < units; ++j)
                hidden[i * units + j] = first[i / choices * units + j] + get(wi[j]);
        }
        for (long j = 0; j < units; ++j) s[j] = get(scale[k * units + j]);
        norm_silu(hidden, s, hidden, units, nullptr, rows, units, eps);
        all_times(hidden, weight_out + k * units * outputs, bias_out + k * outputs, y, rows, units, outputs);
        for (long j = 0; j < rows * outputs; ++j) put(out[k * rows * outputs + j], y[j]);
    }
}

// Sum over n rows of k numbers, in float32, in blocks so that long sums keep their digits.
template <class T>
void column_sum(const T* x, T* out, long n, long k) {
    const long BLOCK = 64;
    float total[LONGEST], part[LONGEST];
    long padded = whole_vectors(k);
    for (long j = 0; j < padded; ++j) total[j] = 0;
    for (long first = 0; first < n; first += BLOCK) {
        long end = first + BLOCK < n ? first + BLOCK : n;
        for (long j = 0; j < padded; ++j) part[j] = 0;
        for (long i = first; i < end; ++i)
            for (long j = 0; j < k; ++j) part[j] += get(x[i * k + j]);
        for (long j = 0; j < padded; ++j) total[j] += part[j];
    }
    for (long j = 0; j < k; ++j) put(out[j], total[j]);
}

// Norm of each of `pieces` pieces of a flat buffer, of the given lengths.
template <class T>
void norms(const T* x, const int64_t* lengths, long pieces, float* out) {
    const long BLOCK = 4096;  // summed by blocks, so that long sums keep their digits
    for (long i = 0; i < pieces; ++i) {
        float total = 0;
        for (long first = 0; first < lengths[i]; first += BLOCK) {
            long end = first + BLOCK < lengths[i] ? first + BLOCK : lengths[i];
            float sum = 0;
            for (long j = first; j < end; ++j) sum += get(x[j]) * get(x[j]);
            total += sum;
        }
        out[i] = std::sqrt(total);
        x += lengths[i];
    }
}

// LaProp on flat buffers: grad times its tensor's clip factor, second and first moment, step.
template <class T>
void laprop(const T* grad, const float* factors, const int64_t* lengths, long pieces, float* second, float* first,
            float* master, T* copy, float beta1, float beta2, float correct2, float eps, float rate) {
    long j = 0;
    for (long i = 0; i < pieces; ++i)
        for (long end = j + lengths[i]; j < end; ++j) {
            float x = get(grad[j]) * factors[i];
            float v = second[j] + (1.0f - beta2) * (x * x - second[j]);
            float m = first[j] + (1.0f - beta1) * (x / (std::sqrt(v / correct2) + eps) - first[j]);
            float w = master[j] - rate * m;
            second[j] = v;
            first[j] = m;
            master[j] = w;
            put(copy[j], w);
        }
}

}  // namespace

#define EXPORT(T, name)                                                                                            \
    void norm_silu_##name(const T* z, const T* s, T* y, long ys, float* r, long n, long u, float eps) {            \
        norm_silu(z, s, y, ys, r, n, u, eps);                                                                      \
    }                                                                                                              \
    void norm_silu_back_##name(const T* g, long gs, const T* z, const float* r, const T* s, T* gz, float* gscale,  \
                               long n, long u) {                                                                   \
        norm_silu_back(g, gs, z, r, s, gz, gscale, n, u);                                                          \
    }                                                                                                              \
    void core_hidden_##name(const T* shared, const T* table, const int64_t* action, const T* own, const T* scale,  \
                            T* hidden, long hg, T* keep, float* r, long n, long g, long o, float eps) {            \
        core_hidden(shared, table, action, own, scale, hidden, hg, keep, r, n, g, o, eps);                         \
    }                                                                                                              \
    void gru_##name(T* gates, long gg, const T* bias, const T* deter, long ds, T* out, long os, long keep, long n, \
                    long g, long o) {                                                                              \
        gru(gates, gg, bias, deter, ds, out, os, keep, n, g, o);                                                   \
    }                                                                                                              \
    void sample_##name(const T* logits, const float* uniform, uint8_t* index, T* hot, long hs, float* probs,       \
                       long n, long s, long k, float mix) {                                                        \
        sample(logits, uniform, index, hot, hs, probs, n, s, k, mix);                                              \
    }                                                                                                              \
    void log_sum_##name(const T* logits, const float* bins, float* log_norm, float* mean, long n, long k) {        \
        log_sum(logits, bins, log_norm, mean, n, k);                                                               \
    }                                                                                                              \
    void cross_entropy_back_##name(const T* logits, const float* log_norm, const int64_t* index,                   \
                                   const float* weight, const float* g, T* out, long n, long k, long m) {          \
        cross_entropy_back(logits, log_norm, index, weight, g, out, n, k, m);                                      \
    }                                                                                                              \
    void soft_cross_entropy_##name(const T* logits, const float* log_norm, const float* target, float* loss, long n, \
                                   long s, long k) {                                                               \
        soft_cross_entropy(logits, log_norm, target, loss, n, s, k);                                               \
    }                                                                                                              \
    void soft_cross_entropy_back_##name(const T* logits, const float* log_norm, const float* target,               \
                                        const float* g, T* out, long n, long s, long k) {                          \
        soft_cross_entropy_back(logits, log_norm, target, g, out, n, s, k);                                        \
    }                                                                                                              \
    void spread_##name(const T* logits, float* out, long m, long n, long s, long k) {                              \
        spread(logits, out, m, n, s, k);                                                                           \
    }                                                                                                              \
    void members_##name(const T* x, const T* weight_in, const T* bias_in, const T* scale, const T* weight_out,     \
                        const T* bias_out, T* out, float* space, long m, long n, long inputs, long choices,        \
                        long units, long outputs, float eps) {                                                     \
        members(x, weight_in, bias_in, scale, weight_out, bias_out, out, space, m, n, inputs, choices, units,      \
                outputs, eps);                                                                                     \
    }                                                                                                              \
    void norm_silu_groups_##name(const T* z, const T* s, T* y, float* r, long m, long n, long u, float eps) {      \
        for (long k = 0; k < m; ++k)                                                                               \
            norm_silu(z + k * n * u, s + k * u, y + k * n * u, u, r + k * n, n, u, eps);                           \
    }                                                                                                              \
    void norm_silu_groups_back_##name(const T* g, const T* z, const float* r, const T* s, T* gz, float* gscale,    \
                                      long m, long n, long u) {                                                    \
        for (long k = 0; k < m; ++k)                                                                               \
            norm_silu_back(g + k * n * u, u, z + k * n * u, r + k * n, s + k * u, gz + k * n * u, gscale + k * u,  \
                           n, u);                                                                                  \
    }                                                                                                              \
    void column_sums_##name(const T* x, T* out, long m, long n, long k) {                                          \
        for (long i = 0; i < m; ++i) column_sum(x + i * n * k, out + i * k, n, k);                                 \
    }                                                                                                              \
    void column_sum_##name(const T* x, T* out, long n, long k) { column_sum(x, out, n, k); }                       \
    void norms_##name(const T* x, const int64_t* lengths, long pieces, float* out) { norms(x, lengths, pieces, out); } \
    void laprop_##name(const T* grad, const float* factors, const int64_t* lengths, long pieces, float* second,    \
                       float* first, float* master, T* copy, float beta1, float beta2, float correct2, float eps,  \
                       float rate) {                                                                               \
        laprop(grad, factors, lengths, pieces, second, first, master, copy, beta1, beta2, correct2, eps, rate);    \
    }
extern "C" {
EXPORT(float, float32)
EXPORT(bfloat16, bfloat16)
void gru_back_float32(const float* g_out, const float* kept, long kg, const float* deter, float* ggates,
                      float* gdeter, long n, long g, long o) {
    gru_back(g_out, kept, kg, deter, ggates, gdeter, n, g, o);
}
void sample_back_float32(const float* a, const float* b, const float* c, const float* probs, float* glogits,
                         long n, long k, float mix) {
    sample_back(a, b, c, probs, glogits, n, k, mix);
}
}
